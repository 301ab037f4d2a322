"""The tests of bnext: a package, so that its files can share reference, cases and comparisons.

NumPy's matrix products, which are small here, take one thread: on a busy machine, threads that wait
for each other take many times as long.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
