"""Synthetic faces, drawn from parameters."""
