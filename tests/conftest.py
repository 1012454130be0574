"""Settings for the whole suite."""

import os

from hypothesis import settings

# Before NumPy is imported: the arrays are small, and a second thread of BLAS only gets in the way of other tests.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The same examples on every machine, unless KFAC_REF_HYPOTHESIS=explore asks for new ones, and more of them.
settings.register_profile("default", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.register_profile("mutants", deadline=None, max_examples=10, derandomize=True)
settings.load_profile(os.environ.get("KFAC_REF_HYPOTHESIS", "default"))
