"""The work of the benchmark as dbl_jax does it; one module for each kind."""
