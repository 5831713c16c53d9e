"""A path becomes one manifest; a row of it becomes pixels, or the reason why not."""
