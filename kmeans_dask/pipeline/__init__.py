"""The stages of a job in order: what is run, what is skipped, and what is recorded."""
