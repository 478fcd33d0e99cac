"""Losses, as terms a config names and weighs; `terms` lists them."""
