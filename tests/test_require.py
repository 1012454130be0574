"""A missing tool skips with a clear word, and fails where ``KFAC_REF_REQUIRE`` names it."""

from __future__ import annotations

import pytest

from tests import require


def test_what_is_missing_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFAC_REF_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-package is not installed"):
        require.peer("no_such_module", "no-such-package")
    monkeypatch.setenv("KFAC_REF_REQUIRE", "browser")
    with pytest.raises(pytest.skip.Exception, match="no-such-package"):
        require.peer("no_such_module", "no-such-package")


def test_what_is_required_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFAC_REF_REQUIRE", "browser,peers")
    with pytest.raises(pytest.fail.Exception, match="KFAC_REF_REQUIRE asks for peers"):
        require.peer("no_such_module", "no-such-package")
    require.peer("numpy", "numpy")
