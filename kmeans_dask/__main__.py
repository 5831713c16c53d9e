"""``python -m kmeans_dask`` is the command ``kmeans-dask``."""

import sys

from kmeans_dask.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
