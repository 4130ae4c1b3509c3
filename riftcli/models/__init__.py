"""Backbones from outside: built, loaded, given a head, changed by surgery, saved."""
