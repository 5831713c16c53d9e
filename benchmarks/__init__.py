"""Benchmarks against other libraries and against the hardware; RESULTS.md has the results.

Import this package before NumPy: it unsets environment variables that slow down a current OpenBLAS, for every engine.
"""

import os

for _variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_variable, None)
