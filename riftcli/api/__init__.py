"""What commands, notebooks, sweeps and cluster jobs call: a run from start to page, and its results as Python values."""
