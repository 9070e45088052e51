"""Rendering: plots, HTML pages and their templates."""
