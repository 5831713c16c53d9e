"""Fit the models of a config that are missing.

python jobs/fit.py configs/mnist.yaml [KEY=VALUE]... [--cluster tcp://10.0.0.1:8786]
"""

import sys

from kmeans_dask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["fit", *sys.argv[1:]]))
