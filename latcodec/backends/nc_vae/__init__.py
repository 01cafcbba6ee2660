"""NC-VAE: a codec without side network, whose tables follow the picture."""
