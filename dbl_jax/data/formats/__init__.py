"""Readers of image files and of the data sets' layouts."""
