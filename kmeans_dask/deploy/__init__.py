"""Starting clusters and connecting to them, submitting jobs, and the watchdog. Only this room imports distributed."""
