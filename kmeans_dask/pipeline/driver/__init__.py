"""The process that drives a job: its lock, its log, its signals and its failures."""
