"""One trunk, one head a task, one model: a painting's artist, style and genre together."""

__version__ = "0.1.0.dev0"
