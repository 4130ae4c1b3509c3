"""The task loss."""
