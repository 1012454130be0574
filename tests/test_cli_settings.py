"""An optimizer's settings on the command line: numbers, and approximations and expectations by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kfac_ref import approximations, cli
from kfac_ref.experiments.settings import EXPECTATIONS, OPTIMIZERS, Settings, optimizer_settings
from kfac_ref.optimizers import KFAC

SMALL = ["train", "--net", "64-2-64", "--batch", "20", "--iterations", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(("approximation", "expectation"), [("ekfac", "exact"), ("kfra", "empirical"),
                                                            ("block-tridiagonal", "one-draw")])
def test_an_approximation_and_an_expectation_are_given_by_name(approximation: str, expectation: str,
                                                               tmp_path: Path) -> None:
    names = ["--set", f"approximation={approximation}", "--set", f"expectation={expectation}", "--set", "T3=5"]
    assert cli.main([*SMALL, *names, "--out", str(tmp_path / "run")]) == 0
    settings = Settings(**json.loads((tmp_path / "run" / "run.json").read_text())["settings"])
    assert settings.settings == {"approximation": approximation, "expectation": expectation, "T3": 5}
    opt = settings.make_optimizer(settings.model())
    assert isinstance(opt, KFAC)
    assert opt.approximation is approximations.TABLE[approximation]
    assert opt.expectation is EXPECTATIONS[expectation]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_default_settings_are_plain_and_make_the_same_optimizer(optimizer: str) -> None:
    known = optimizer_settings(optimizer)
    assert json.loads(json.dumps(known)) == known
    settings = Settings(net="64-2-64", optimizer=optimizer)
    model = settings.model()
    given, default = OPTIMIZERS[optimizer](model, **known), OPTIMIZERS[optimizer](model)
    assert {n: v for n, v in vars(given).items() if not callable(v)} == {
        n: v for n, v in vars(default).items() if not callable(v)}


def test_the_help_lists_all_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(approximations.TABLE) | set(EXPECTATIONS) | set(OPTIMIZERS) <= set(words)


@pytest.mark.parametrize(("setting", "error"), [
    ("approximation=ekfca", "approximation must be one of block-diagonal, "),
    ("approximation=1", "approximation must be one of block-diagonal, "),
    ("expectation=sampled", "expectation must be one of empirical, exact, one-draw; got 'sampled'"),
    ("lambda_0=small", "lambda_0 must be a number, got 'small'"),
    ('lambda_0="1"', "lambda_0 must be a number, got '1'"),
    ("T1=x", "T1 must be an integer of at least 1, got 'x'"),
    ("momentum=yes", "momentum must be True or False, got 'yes'"),
    ("T1=[1]", "--set T1 must be a number, true, false, null or a name, got '[1]'"),
    ("T1=", "--set T1 must be a number, true, false, null or a name, got ''"),
    ("T1", "--set must be NAME=VALUE, got 'T1'"),
])
def test_what_is_no_setting_is_refused(setting: str, error: str, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, "--set", setting, "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.startswith(f"kfac-ref: {error}")
    assert not (tmp_path / "run").exists()
