"""Convolution, pooling and batch norm, in the form fast on the platform."""
