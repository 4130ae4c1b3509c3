"""Files to batches: splits, transforms, loaders, stores of decoded images, checks of the data."""
