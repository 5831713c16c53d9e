"""The K-Means estimators, their passes, initial centres and kernels; depends on ``kmeans_dask.reduction`` alone."""
