"""Settings for the whole suite."""

import os

from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=40)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("mutants", deadline=None, max_examples=10, derandomize=True)
settings.load_profile(os.environ.get("KFAC_REF_HYPOTHESIS", "ci" if os.environ.get("CI") else "default"))
