"""The run folder, its lock and journal, checkpoints, atomic publishing, object stores and zarr."""
