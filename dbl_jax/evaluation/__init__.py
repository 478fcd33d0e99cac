"""Evaluation: metrics, predictors, the report."""
