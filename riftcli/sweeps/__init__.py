"""Sweeps: many runs that belong to one question, from one file."""
