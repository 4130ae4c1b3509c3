"""One file per command: options in, one call down, print the answer."""
