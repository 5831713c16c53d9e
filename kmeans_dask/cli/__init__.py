"""The command ``kmeans-dask``: ``main`` checks what is typed, and one module for each verb does it."""
