"""Settings for the whole suite, and the mutants that run beside it."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings

# Before NumPy is imported: the arrays are small, and a second thread of BLAS would only wait beside the mutants.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from . import mutants

settings.register_profile("default", deadline=None, max_examples=40)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("mutants", deadline=None, max_examples=10, derandomize=True)
settings.load_profile(os.environ.get("KFAC_REF_HYPOTHESIS", "ci" if os.environ.get("CI") else "default"))

POOL = pytest.StashKey[ThreadPoolExecutor]()


@pytest.hookimpl(trylast=True)                             # after those that were not asked for have been left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the mutants that are asked for, the last first, beside the other tests, and look at them in the end."""
    wanted = {item: item.callspec.params["mutant"] for item in items if "kills" in getattr(item, "fixturenames", ())}
    if not wanted or config.option.collectonly:
        return
    items.sort(key=wanted.__contains__)
    config.stash[POOL] = pool = ThreadPoolExecutor(1)
    mutants.RUNNING.update({mutant: pool.submit(mutants.failures, mutant) for mutant in reversed(wanted.values())})


def pytest_unconfigure(config: pytest.Config) -> None:
    """Start no more mutants once the tests have ended."""
    if pool := config.stash.get(POOL, None):
        pool.shutdown(wait=False, cancel_futures=True)
