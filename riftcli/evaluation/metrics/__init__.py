"""What a report can hold."""
