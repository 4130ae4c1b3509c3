"""Rules that choose the strength of a regularizer while training."""
