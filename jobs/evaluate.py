"""Score the models of a config against its labels.

python jobs/evaluate.py configs/mnist.yaml [KEY=VALUE]... [--cluster tcp://10.0.0.1:8786]
"""

import sys

from kmeans_dask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
