"""Run all stages of a config; rerun the same command to resume.

python jobs/run.py configs/mnist.yaml [KEY=VALUE]... [--cluster tcp://10.0.0.1:8786]
"""

import sys

from kmeans_dask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
