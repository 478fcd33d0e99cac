"""Data sets, preparation and input."""
