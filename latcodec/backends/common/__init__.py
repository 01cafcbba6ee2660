"""What several codecs share: fixed point, checks, RDOQ, search, rate-distortion cost."""
