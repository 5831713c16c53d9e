"""The estimators, their passes, their initial centres and the kernels; knows only ``kmeans_dask.reduction``."""
