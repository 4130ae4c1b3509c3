"""Pure mathematics on tensors: no models, no configuration, no files."""
