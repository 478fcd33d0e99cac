"""From a trained run to photos, files and services."""
