"""The public functions and classes, for programs and notebooks."""
