"""Pure maths on (N, D) tensors: no models, no configuration."""
