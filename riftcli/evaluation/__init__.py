"""Models and data in, numbers out."""
