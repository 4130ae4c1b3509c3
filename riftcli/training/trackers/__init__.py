"""Where a run can be watched beside its own log: one file each, fed with the lines of metrics.jsonl."""
