"""Disentangled and balanced learning (DBL) in JAX."""
