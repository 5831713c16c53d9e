"""Write the report of a config's run.

python jobs/report.py configs/mnist.yaml [KEY=VALUE]... [--cluster tcp://10.0.0.1:8786]
"""

import sys

from kmeans_dask.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
