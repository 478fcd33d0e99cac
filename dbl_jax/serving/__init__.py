"""From a photo to predictions: faces, alignment, probabilities."""
