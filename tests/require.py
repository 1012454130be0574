"""What a test does where a tool that it needs is missing: it skips, unless ``KFAC_REF_REQUIRE`` names the tool.

    KFAC_REF_REQUIRE=browser,peers python -m pytest        # a missing browser or peer is a failure
"""

from __future__ import annotations

import importlib.util
import os

import pytest


def missing(kind: str, words: str) -> None:
    """Skip the test, or the module that is being imported; fail instead if this `kind` of tool is required."""
    if kind in os.environ.get("KFAC_REF_REQUIRE", "").split(","):
        pytest.fail(f"{words}, and KFAC_REF_REQUIRE asks for {kind}", pytrace=False)
    pytest.skip(words, allow_module_level=True)


def peer(module: str, package: str) -> None:
    """Go on only if another implementation is installed."""
    if importlib.util.find_spec(module) is None:
        missing("peers", f"{package} is not installed (make peers installs it)")
