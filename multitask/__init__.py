"""One model with one trunk and one head per task: artist, style and genre of a painting."""

__version__ = "0.1.0.dev0"
