"""The number of threads that a test computes with: all pytest workers share the cores."""

import os

THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
