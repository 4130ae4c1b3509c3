"""One file per evaluation: its options, its measurement, and where its results belong."""
