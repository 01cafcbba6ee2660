"""The mean-scale hyperprior: the smallest codec, where readers may start."""
