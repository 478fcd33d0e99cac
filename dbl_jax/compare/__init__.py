"""Tables over systems and seeds."""
