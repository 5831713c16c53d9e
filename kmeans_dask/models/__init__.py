"""A fitted model on disk, in use, and exported."""
