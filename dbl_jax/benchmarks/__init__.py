"""The benchmark: dbl_jax and its peers on the same work, in alternation."""
