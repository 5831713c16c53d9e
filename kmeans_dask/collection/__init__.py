"""From a manifest to a zarr collection opened as Dask arrays, and the features of its items."""
