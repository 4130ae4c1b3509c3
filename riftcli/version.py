"""The version, in a file of its own: reports and the build read it without importing the package."""

__version__ = "0.1.0"
