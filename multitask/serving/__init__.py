"""Exports, and predictions with exports and runs."""
