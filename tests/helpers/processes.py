"""How tests start processes."""

import multiprocessing
import os

# Forks of a server that has imported what they need and computed nothing: a fork of this process, whose threads may
# have computed, would wait for threads that it does not have.
CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
