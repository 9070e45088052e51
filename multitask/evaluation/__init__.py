"""Evaluation of a trained model: predictions, metrics, similar images and the report."""
