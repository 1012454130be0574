"""The demo from end to end, its tables and choices against hand-made runs, and what it does when something fails."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy
from matplotlib.figure import Figure
from threadpoolctl import threadpool_info, threadpool_limits

import kfac_ref as kr
from kfac_ref import cli, datasets, training
from kfac_ref.analysis import Judgement, judge
from kfac_ref.environment import environment
from kfac_ref.experiments import autoencoder, classifier, comparison, family, report, tables
from kfac_ref.optimizers import KFAC

from .problems import close, relative
from .test_training import rest, terminal

pytestmark = pytest.mark.slow

ROOT = Path(kr.__file__).parents[1]
KFAC_NAME = "K-FAC, m = 500"


@pytest.fixture(scope="module")
def data():
    return datasets.digits()


@pytest.fixture(scope="module")
def few(data):
    """Return a hundred digits."""
    return datasets.Dataset(data.x[:100], data.labels[:100], data.x_test[:20], data.labels_test[:20])


@pytest.fixture(scope="module")
def short_runs(data):
    """Return runs of a single step."""
    return autoencoder.convergence(data, shorten=10**6)


def refused_by_strict_parsers(word):
    raise AssertionError(f"{word} is no JSON")


def strict_json(path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refused_by_strict_parsers)


def without_seconds(tree):
    """Return nested data without what is under keys that end in seconds."""
    if isinstance(tree, dict):
        return {key: without_seconds(value) for key, value in tree.items()
                if not key.endswith("seconds") and key != "sha256"}                 # pictures show seconds
    return [without_seconds(value) for value in tree] if isinstance(tree, list) else tree


# From end to end


def end_to_end(test):
    """Mark a test of the two demos that take long, which are run by one worker."""
    return pytest.mark.slow(pytest.mark.xdist_group("demo")(test))


# Of the session: a worker may run tests of another module in between.
@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Run ``python -m kfac_ref demo --quick``; return its output and its folder."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    run = subprocess.run([sys.executable, "-m", "kfac_ref", "demo", "--quick", "--out", out], cwd=ROOT,
                         capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout, out


@pytest.fixture(scope="session")
def summary(demo):
    return strict_json(demo[1] / "summary.json")


@pytest.fixture(scope="session")
def again(tmp_path_factory):
    """Run the same once more, through the function."""
    out = tmp_path_factory.mktemp("again")
    code = "import sys; from kfac_ref import cli; sys.exit(cli.main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, "demo", "--quick", "--seed", "0", "--out", out], cwd=ROOT,
                   stdout=subprocess.DEVNULL, check=True)
    return strict_json(out / "summary.json")


@end_to_end
def test_the_demo_prints_its_tables(demo):
    printed, out = demo
    lines = printed.splitlines()
    for head in ("error at most", "relative error", "error budget"):
        at = next(i for i, line in enumerate(lines) if line.startswith(head))
        assert set(lines[at + 1]) == {"-"}
    for name in autoencoder.METHODS:
        row = next(i for i, line in enumerate(lines) if line.startswith(name))
        assert lines[row].split(name)[1].split()[0] == "iterations"
        assert lines[row + 1].split()[0] == "seconds"
    head = next(line for line in lines if line.startswith("relative error"))
    stages = [name.strip() for name in head.split("  ") if name][1:]
    assert stages == ["at the start", "after 3 steps", "after 10 steps"]
    for name in family.FAMILY:
        assert (name == "exact F") != any(line.startswith(name) and line.count(".") == 3 for line in lines)
    assert f"wrote convergence.png, fisher.png, budget.png and summary.json to {out}/ (" in lines[-1]


@end_to_end
def test_the_demo_writes_four_files_and_nothing_else(demo):
    _, out = demo
    pictures = ["budget.png", "convergence.png", "fisher.png"]
    assert sorted(path.name for path in out.iterdir()) == [*pictures, "summary.json"]
    for name in pictures:
        png = (out / name).read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert png.endswith(b"IEND\xaeB`\x82")
        width, height = (int.from_bytes(png[i:i + 4], "big") for i in (16, 20))
        assert width > 1000
        assert height > 400


@end_to_end
def test_the_summary_has_every_number(summary):
    assert set(summary) == {"seed", "environment", "autoencoder", "classifier", "budget", "sha256"}
    assert summary["seed"] == 0
    assert list(summary["autoencoder"]) == list(autoencoder.METHODS)
    assert list(summary["classifier"]) == ["at the start", "after 3 steps", "after 10 steps"]
    for name, method in autoencoder.METHODS.items():
        entry = summary["autoencoder"][name]
        assert (entry["batch"], entry["settings"]) == (method.batch, method.settings)
        assert len(entry["runs"]) == len(autoencoder.SEEDS)
        for run in entry["runs"]:
            assert [e["k"] for e in run["evaluations"]] == training.evaluation_steps(method.iterations // 100)
            assert all(set(e) == set(training.Evaluation.__dataclass_fields__) for e in run["evaluations"])
            assert list(run["levels"]) == [f"{level:g}" for level in autoencoder.LEVELS]


@end_to_end
def test_the_levels_of_the_summary_follow_from_its_evaluations(summary):
    hits = 0
    for entry in summary["autoencoder"].values():
        for run in entry["runs"]:
            for level, hit in run["levels"].items():
                good = [e for e in run["evaluations"] if e["error"] <= float(level)]
                assert hit == ({"iterations": good[0]["k"], "seconds": good[0]["seconds"]} if good else None)
                hits += bool(good)
    assert hits > 0


@end_to_end
def test_the_summary_says_what_its_bits_depend_on(summary):
    environment = summary["environment"]
    assert environment["python"] == platform.python_version()
    assert (environment["numpy"], environment["scipy"]) == (np.__version__, scipy.__version__)
    assert set(environment["threads"].split(", ")) == {"1"}
    assert {"blas", "machine", "platform", "cores"} <= set(environment)


@end_to_end
def test_the_demo_learns_and_its_approximations_are_what_they_must_be(summary):
    for entry in summary["autoencoder"].values():
        for run in entry["runs"]:
            assert run["evaluations"][-1]["error"] < run["evaluations"][0]["error"] / 3
    for stage in summary["classifier"].values():
        assert 0 < stage["whole"]["F_tilde"] < stage["whole"]["F_breve"] < 1
        for block in stage["blocks"]:
            assert 0 < block["best_kronecker"] < block["kronecker_factored"] < 1
    first, _, last = (stage["train_error"] for stage in summary["classifier"].values())
    assert last < first / 3


@end_to_end
def test_the_same_seed_gives_the_same_summary_apart_from_seconds(summary, again):
    assert without_seconds(summary) == without_seconds(again)
    assert summary != again                                                     # seconds are measured, after all


def test_seeds_follow_one_another_and_differ(data, short_runs):
    other = autoencoder.convergence(data, 1, shorten=10**6)
    for name, runs in short_runs.items():
        errors, others = ([[replace(e, seconds=0.0) for e in h.evaluations] for h in r] for r in (runs, other[name]))
        assert others[:2] == errors[1:]
        assert len({e[-1].error for e in [*errors, others[2]]}) == 4


def test_the_classifiers_stages_depend_on_the_seed(monkeypatch, few):
    small = kr.Model(kr.MLP((64, 5, 5, 10), "tanh"), kr.Categorical(), weight_decay=1e-5)
    monkeypatch.setattr(classifier, "untrained", lambda: small)
    one, two, other = (classifier.stages(few, seed, (1, 2), 3) for seed in (0, 0, 1))
    assert [s.name for s in one] == ["at the start", "after 1 steps", "after 2 steps"]
    for a, b, c in zip(one, two, other, strict=True):
        assert a.F.tobytes() == b.F.tobytes()
        assert a.errors == b.errors != c.errors
    assert relative(one[1].F, one[0].F) > 1e-3


# The command line


@pytest.fixture
def quickened(monkeypatch, short_runs):
    """Give the command results at once, and note what it asked for."""
    asked = []

    def convergence(data, seed, shorten):
        asked.append(("convergence", seed, shorten))
        return short_runs

    def stages(data, seed, steps, cases):
        asked.append(("stages", seed, steps, cases))
        errors = {"whole": {"F_tilde": 0.1, "F_breve": 0.2}, "train_error": 0.5, "family": {"EKFAC": 0.3},
                  "blocks": [{"kronecker_factored": 0.1, "best_kronecker": 0.05}]}
        return [classifier.Stage("at the start", np.eye(2), np.eye(2), np.eye(2), errors)]

    monkeypatch.setattr(autoencoder, "convergence", convergence)
    monkeypatch.setattr(classifier, "stages", stages)
    def budget(data, seed, step, cases):
        asked.append(("budget", seed, step, cases))
        return classifier.Budget(step, 0.1, 0.5, [Judgement("exact", 0.0, math.nan, 0.0, 1.0, 1.0),
                                                  Judgement("next", 0.5, 0.5, 10.0, 2.0, 0.9)])

    monkeypatch.setattr(classifier, "fisher_figure", lambda found: Figure())
    monkeypatch.setattr(classifier, "budget", budget)
    return asked


@pytest.mark.parametrize(("options", "asked"), [
    ([], [("convergence", 0, 1), ("stages", 0, (10, 200), None), ("budget", 0, 58, None)]),
    (["--quick", "--seed", "7"], [("convergence", 7, 100), ("stages", 7, (3, 10), 200), ("budget", 7, 6, 200)])])
def test_options_reach_the_experiments(quickened, tmp_path, options, asked):
    assert cli.main(["demo", "--out", str(tmp_path), *options]) == 0
    assert quickened == asked
    summary = strict_json(tmp_path / "summary.json")
    assert summary["seed"] == asked[0][1]
    assert list(summary["autoencoder"]) == list(autoencoder.METHODS)


@pytest.mark.parametrize("below", [".", "folder", "folder/folder"])
def test_an_out_that_cannot_be_written_is_refused_before_anything_is_computed(quickened, tmp_path, capsys, below):
    file = tmp_path / "file"
    file.write_text("kept")
    assert cli.main(["demo", "--quick", "--out", str(file / below)]) == 1
    printed, error = capsys.readouterr()
    assert error.startswith(f"kfac-ref: {file / below} cannot be written: ")
    assert error.count("\n") == 1
    assert (printed, quickened) == ("", [])
    assert file.read_text() == "kept"


def test_a_negative_seed_is_refused_before_anything_is_made(quickened, tmp_path, capsys):
    out = tmp_path / "new"
    assert cli.main(["demo", "--seed", "-1", "--out", str(out)]) == 1
    assert capsys.readouterr() == ("", "kfac-ref: --seed must be at least 0, got -1\n")
    assert quickened == []
    assert not out.exists()


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_disk_that_is_full_at_the_end_is_a_failure_and_the_old_files_are_intact(quickened, monkeypatch, tmp_path,
                                                                                  capsys, calls):
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 0
    before, fsync, left = contents(tmp_path), os.fsync, iter(range(calls))
    capsys.readouterr()

    def full(handle):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert cli.main(["demo", "--quick", "--seed", "1", "--out", str(tmp_path)]) == 1
    printed, error = capsys.readouterr()
    name = ["summary.json", "convergence.png", "", "budget.png"][calls]
    assert error == f"kfac-ref: cannot write {tmp_path / name} (No space left on device)\n"
    assert "wrote" not in printed
    assert "error at most" in printed                           # what was computed has been shown
    assert contents(tmp_path) == before
    assert cli.main(["demo", "--quick", "--seed", "1", "--out", str(tmp_path)]) == 0


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("name", "options"), [("summary.json", []), ("fisher.png", []), ("budget.pdf", ["--pdf"]),
                                               ("tune.json", ["--tune"])])
def test_the_demo_replaces_its_own_files_and_no_others(quickened, monkeypatch, tmp_path, capsys, name, options):
    monkeypatch.setattr(comparison, "tune", lambda *arguments, **rest: quickened.append("tune") or {})
    demo = ["demo", "--quick", "--out", str(tmp_path)]
    for _ in range(2):
        assert cli.main(demo) == 0
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    quickened.clear()
    capsys.readouterr()
    assert cli.main([*demo, *options]) == 1
    printed, error = capsys.readouterr()
    assert re.fullmatch(rf"kfac-ref: {tmp_path}/\S+ exists and is not replaced; .* --force\n", error)
    assert (printed, quickened) == ("", [])                     # before anything is computed
    assert contents(tmp_path) == before
    assert cli.main([*demo, *options, "--force"]) == 0
    assert (tmp_path / name).read_bytes() != b"mine"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_demo_follows_no_link_out_of_its_folder(quickened, tmp_path, capsys):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fisher.png").symlink_to(tmp_path / "precious")
    demo = ["demo", "--quick", "--out", str(tmp_path / "out")]
    assert cli.main(demo) == 1
    assert "fisher.png is a symbolic link to" in capsys.readouterr().err
    assert cli.main([*demo, "--force"]) == 0
    assert (tmp_path / "precious").read_text() == "mine"


def interrupt(*arguments, **more):
    raise KeyboardInterrupt


def status(arguments):
    """Return the exit status; a Ctrl-C that gets through would end the whole test run."""
    try:
        return cli.main(arguments)
    except KeyboardInterrupt:
        return "Ctrl-C got through"


@pytest.mark.parametrize("options", [[], ["--tune"]])
def test_ctrl_c_in_a_step_ends_the_demo(monkeypatch, tmp_path, capsys, options):
    steps = []

    def step(self, state, x, y):
        steps.append(state.k)
        raise KeyboardInterrupt

    monkeypatch.setattr(KFAC, "step", step)
    monkeypatch.setattr(autoencoder, "METHODS", {KFAC_NAME: autoencoder.METHODS[KFAC_NAME]})
    assert status(["demo", "--quick", "--out", str(tmp_path), *options]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert steps == [0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "where"), [(autoencoder, "convergence"), (classifier, "stages"),
                                               (tables, "figure"), (report, "summary")])
def test_ctrl_c_anywhere_else_ends_the_demo(quickened, monkeypatch, tmp_path, capsys, module, where):
    monkeypatch.setattr(module, where, interrupt)
    assert status(["demo", "--quick", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not (tmp_path / "summary.json").exists()


def test_a_real_ctrl_c_on_a_terminal(tmp_path):
    ours, theirs = terminal()
    command = [sys.executable, "-m", "kfac_ref", "demo", "--out", tmp_path]
    # A shell's background job, and what it starts, ignores Ctrl-C; a terminal's does not.
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)) as process:
        os.close(theirs)
        written = b""
        # The bar of the first run with a loss in it: while tqdm still makes a bar, it cannot be interrupted cleanly.
        while b"loss=" not in written:
            written += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        written += rest(ours)
    assert process.returncode == 130
    assert written.rstrip().endswith(b"interrupted")
    assert b"Traceback" not in written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["demo", "--help"], 0), ([], 2), (["dance"], 2),
                                                 (["demo", "--seed", "one"], 2), (["demo", "--swift"], 2)])
def test_the_parser_ends_the_process(arguments, code, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == code
    printed, error = capsys.readouterr()
    assert bool(printed) == (code == 0)
    assert bool(error) == (code == 2)
    if arguments == ["--version"]:
        assert printed == f"kfac_ref {kr.__version__}\n"


def test_tuning_writes_what_it_chose(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(comparison, "tune",
                        lambda of, report, data, shorten: report("a trial") or {"shorten": shorten})
    assert cli.main(["demo", "--tune", "--quick", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "a trial\n"
    assert strict_json(tmp_path / "tune.json") == {"shorten": 100}


# Threads


def test_the_command_computes_with_one_thread_unless_the_user_has_chosen(monkeypatch):
    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    seen = []
    monkeypatch.setattr(cli, "_demo", lambda *arguments: seen.append((threads(), environment()["threads"])) or 0)
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert cli.main(["demo"]) == 0
        assert threads() == before                          # those of the process are as they were
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
        assert cli.main(["demo"]) == 0
    assert [found for found, _ in seen] == [{1}, before]
    assert [set(text.split(", ")) for _, text in seen] == [{"1"}, set(map(str, before))]


# Steps, levels and tables


@pytest.mark.parametrize("iterations", [0, 1, 2, 12, 13, 14, 26, 1000, 1300, 10000])
def test_evaluated_steps_rise_by_the_spacing(iterations):
    steps = training.evaluation_steps(iterations)
    assert (steps[0], steps[-1]) == (0, iterations)
    for a, b in pairwise(steps):
        assert a < b
        assert b <= max(a + 1, a * training.SPACING + 1)     # a step is a whole number
        assert b >= a * training.SPACING or b == iterations
    # The last 100 ratios of a long run have no such excuse.
    assert all(b / a < training.SPACING + 1e-2 for a, b in pairwise(steps) if a > 100)


def history(errors, seconds_a_step=0.5, steps=None):
    """Return a run with these errors after 0, 1, ... steps."""
    steps = steps or range(len(errors))
    return training.History(None, (), [], [training.Evaluation(k, k * seconds_a_step, 9 * e, e, 7 * e, 8 * e, 5 * e,
                                                               6 * e) for k, e in zip(steps, errors, strict=True)])


def test_a_level_is_reached_where_the_training_error_first_is_at_most_that():
    run = history([4, 3, 2.5, 3.5, 1, math.nan], steps=[0, 2, 5, 9, 20, 30])
    assert tables.reached(run, 4) == (0, 0)
    assert tables.reached(run, 3) == (2, 1)
    assert tables.reached(run, 2.9) == (5, 2.5)
    assert tables.reached(run, 2) == (20, 10)
    assert tables.reached(run, 0.9) is None
    assert tables.reached(history([math.nan] * 3), 100) is None


@pytest.mark.parametrize(("values", "text"), [
    ([1, 2, 4], "2 (1-4)"), ([4, 1, 2], "2 (1-4)"), ([5, 5, 5], "5 (5-5)"), ([7], "7 (7-7)"),
    ([1, None, 4], "4 (1 up)"), ([None, 4, 1], "4 (1 up)"),       # the one that is missing counts as the slowest
    ([1, None, None], "-"), ([None, None, None], "-"), ([None], "-"), ([1, None], "-"), ([0, 0, 1], "0 (0-1)"),
    ([1, 2, 3, 4, None], "3 (1 up)"), ([1, 2, None, None], "-")])
def test_a_spread_is_the_median_and_the_range(values, text):
    assert tables.spread(values, "{:.0f}") == text


@pytest.mark.parametrize(("values", "text"), [([1, 2], "1.5 (1.0-2.0)"), ([1, 2, 5, 7], "3.5 (1.0-7.0)"),
                                              ([1, 2, 5, None], "3.5 (1.0 up)")])
def test_the_median_of_an_even_number_lies_between_the_middle_two(values, text):
    assert tables.spread(values, "{:.1f}") == text


def test_the_table_of_levels():
    runs = [history([4, 3, 1.2]), history([4, 1.4, 0.5]), history([4, 3.5, 2.75])]
    never = [history([9, 8, 7])] * 3
    assert tables.level_table({"one": runs, "two": never}, (3.0, 1.5, 0.8)) == [
        ["error at most", "", "3", "1.5", "0.8", "last error", "of the averaged iterate"],
        ["one", "iterations", "1 (1-2)", "2 (1 up)", "-", "1.200 (0.500-2.750)", "8.400 (3.500-19.250)"],
        ["", "seconds", "0.50 (0.50-1.00)", "1.00 (0.50 up)", "-", "", ""],
        ["two", "iterations", "-", "-", "-", "7.000 (7.000-7.000)", "49.000 (49.000-49.000)"],
        ["", "seconds", "-", "-", "-", "", ""]]


def test_a_table_is_aligned():
    text = report.format_table([["name", "a", "long head"], ["b", "12345", "6"], ["longer name", "1", ""]])
    assert text.split("\n") == ["name             a  long head",
                                "-----------------------------",
                                "b            12345          6",
                                "longer name      1"]


def caption(histories):
    of = autoencoder.compared()
    return " ".join(tables.figure(histories, of.levels, of.title, of.error)._supxlabel.get_text().split("\n"))


def test_the_caption_tells_the_lowest_level_that_k_fac_and_a_baseline_reached(monkeypatch):
    monkeypatch.setattr(autoencoder, "LEVELS", (3.0, 1.5, 0.8))
    slow, fast, best = history([4, 3, 2, 1]), history([4, 1, 1, 1]), history([4, 2, 1, 0.5])
    text = caption({KFAC_NAME: [fast, best, fast], "SGD": [slow, slow, fast], "Adam": [history([4, 4, 4, 4])] * 3})
    assert text.endswith("To an error of 1.5 K-FAC with m = 500 takes 1 iterations and 0.5 s; SGD takes 3 iterations "
                         "and 1.5 s; Adam does not get there.")
    assert "To an error" not in caption({KFAC_NAME: [slow] * 3, "SGD": [history([9, 9, 9, 9])] * 3})
    assert "To error" not in caption({KFAC_NAME: [history([9, 9, 9, 9])] * 3, "SGD": [slow] * 3, "Adam": [slow] * 3})


# The methods


def test_every_method_has_as_many_trials():
    trials = {name: method.trials() for name, method in autoencoder.METHODS.items()}
    assert {len(t) for t in trials.values()} == {16}
    for name, method in autoencoder.METHODS.items():
        assert len({tuple(t.items()) for t in trials[name]}) == 16
        assert method.settings in trials[name]
        assert all({*t} == {*method.grid, *method.settings} for t in trials[name])
        for settings in trials[name]:
            autoencoder.compared().settings(method, settings, 0)


def test_what_is_reported_was_not_tuned_on():
    assert not set(autoencoder.TUNING_SEEDS) & set(autoencoder.SEEDS)
    assert len(set(autoencoder.SEEDS)) == 3
    assert list(autoencoder.LEVELS) == sorted(autoencoder.LEVELS, reverse=True)


def method(**grid):
    return comparison.Method("sgd", "50", 20, {}, grid)


def test_tuning_chooses_the_best_score(monkeypatch, few):
    grid = {"learning_rate": (1e-4, 0.05, 1e-3), "mu_max": (0.9,), "period": (10,)}
    monkeypatch.setattr(autoencoder, "METHODS", {"SGD": method(**grid)})
    told = []
    chosen = comparison.tune(autoencoder.compared(), told.append, data=few)["SGD"]
    assert [t["settings"]["learning_rate"] for t in chosen["trials"]] == [1e-4, 0.05, 1e-3]
    assert chosen["settings"] == {"learning_rate": 0.05, "mu_max": 0.9, "period": 10}
    assert min(chosen["trials"], key=lambda t: t["score"])["settings"] == chosen["settings"]
    assert len(told) == 3 + 1
    # The score by hand, and on the tuning seeds only.
    runs = [comparison.run(autoencoder.compared(), method(**grid), chosen["settings"], seed, few)
            for seed in autoencoder.TUNING_SEEDS]
    logs = [[math.log(e.error) for e in h.evaluations if e.k >= 2] for h in runs]
    trial = chosen["trials"][1]
    close(trial["score"], np.mean(np.mean(logs, axis=1)), rtol=1e-14)
    close(trial["final_error"], np.mean([h.evaluations[-1].error for h in runs]), rtol=1e-14)


@pytest.mark.parametrize("blown_up", [math.inf, math.nan])
def test_tuning_never_chooses_a_run_that_blew_up(monkeypatch, few, blown_up):
    def run(compared, method, settings, seed, data, iterations, name, evaluate_at):
        error = {1: blown_up}.get(settings["learning_rate"], settings["learning_rate"])
        return history([5, 4, error if seed == autoencoder.TUNING_SEEDS[0] else 1e-9])

    for rates in ((1, 3, 2), (3, 2, 1), (2, 1, 3)):
        monkeypatch.setattr(autoencoder, "METHODS", {"SGD": method(learning_rate=rates)})
        chosen = comparison.tune(autoencoder.compared(), lambda text: None, run, few)
        assert chosen["SGD"]["settings"] == {"learning_rate": 2}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning",
                            "ignore:invalid value encountered:RuntimeWarning")
def test_a_trial_whose_weights_overflow_does_not_end_the_tuning(monkeypatch, few):
    grid = {"learning_rate": (1e100, 0.05), "mu_max": (0.9,), "period": (10,)}
    monkeypatch.setattr(autoencoder, "METHODS", {"SGD": method(**grid)})
    chosen = comparison.tune(autoencoder.compared(), lambda text: None, data=few)["SGD"]
    assert chosen["settings"]["learning_rate"] == 0.05
    assert not math.isfinite(chosen["trials"][0]["score"])


# Stages


@pytest.fixture(scope="module")
def compared(few):
    """Compare a small classifier on 30 digits, and return the model, the point and the stage."""
    model = kr.Model(kr.MLP((64, 3, 4, 10), "tanh"), kr.Categorical(), weight_decay=1e-2)
    weights = model.init(np.random.default_rng(0), "glorot")
    return model.at(weights, few.x[:30]), classifier.stage("now", model, weights, few, 30)


def by_kronecker(at, diagonal_only):
    """Return F̃, or its diagonal blocks alone, from np.kron of means over examples of A_ij and G_ij."""
    C = at.z.shape[1]
    p = np.exp(at.z - at.z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    g = at.backward(np.stack([np.sqrt(p[:, [c]]) * (p - np.eye(C)[c]) for c in range(C)]))
    layers = range(len(g))
    return np.block([[np.kron(at.a_bar[i].T @ at.a_bar[j], np.einsum("kna,knb->ab", g[i], g[j])) / len(at)**2
                      * (i == j or not diagonal_only) for j in layers] for i in layers])


def test_a_stage_holds_the_exact_fisher_and_both_approximations(compared):
    at, stage = compared
    assert stage.name == "now"
    np.testing.assert_array_equal(stage.F, kr.fisher_matrix(at))
    close(stage.F_tilde, by_kronecker(at, False), rtol=1e-12)
    close(stage.F_breve, by_kronecker(at, True), rtol=1e-12)
    assert len(stage.F) == at.model.network.parameters          # and weight decay has no part in it


def test_the_errors_of_a_stage(compared, few):
    at, stage = compared
    errors = stage.errors
    close(errors["whole"]["F_tilde"], relative(by_kronecker(at, False), stage.F), rtol=1e-12)
    close(errors["whole"]["F_breve"], relative(by_kronecker(at, True), stage.F), rtol=1e-12)
    assert errors["train_error"] == np.mean(at.z.argmax(axis=1) != few.labels[:30])
    assert len(errors["blocks"]) == 3
    start = 0
    for block, (m, n) in zip(errors["blocks"], at.model.network.shapes, strict=True):
        rows = slice(start, start := start + m * n)
        close(block["kronecker_factored"], relative(stage.F_breve[rows, rows], stage.F[rows, rows]), rtol=1e-12)
        assert 0 < block["best_kronecker"] <= block["kronecker_factored"]


def alternating(B, m, n, sweeps=300):
    """Return the error of the nearest Kronecker product by alternating least squares: each factor in turn."""
    blocks = B.reshape(n, m, n, m)                              # B[i m + a, j m + b]
    G = np.eye(m)
    for _ in range(sweeps):
        A = np.einsum("iajb,ab->ij", blocks, G) / (G * G).sum()
        G = np.einsum("iajb,ij->ab", blocks, A) / (A * A).sum()
    return relative(np.kron(A, G), B)


def test_the_best_kronecker_product_of_one_block(compared):
    at, stage = compared
    m, n = at.model.network.shapes[1]
    assert (m, n) == (4, 4)
    block = stage.F[3 * 65:3 * 65 + 16, 3 * 65:3 * 65 + 16]
    best = stage.errors["blocks"][1]["best_kronecker"]
    # An error is flat around its minimum, so it has all its digits once the factors have half of theirs.
    close(best, alternating(block, m, n), rtol=1e-10)
    assert best < 0.99 * stage.errors["blocks"][1]["kronecker_factored"]


def test_stages_use_as_many_cases_as_they_are_told(few):
    model = kr.Model(kr.MLP((64, 3, 10), "tanh"), kr.Categorical())
    weights = model.init(np.random.default_rng(0), "glorot")
    some, every = (classifier.stage("", model, weights, few, cases) for cases in (30, None))
    np.testing.assert_array_equal(some.F, kr.fisher_matrix(model.at(weights, few.x[:30])))
    np.testing.assert_array_equal(every.F, kr.fisher_matrix(model.at(weights, few.x)))


def test_the_relative_error():
    assert classifier.relative_error(np.array([[3.0, 0], [0, 9]]), np.array([[3.0, 4], [0, 12]])) == 5 / 13
    assert classifier.relative_error(np.zeros((2, 3)), np.ones((2, 3))) == 1
    F = np.random.default_rng(0).standard_normal((4, 4))
    assert classifier.relative_error(F, F) == 0
    # The norm below is that of the exact matrix, not of the approximation.
    close([classifier.relative_error(2 * F, F), classifier.relative_error(F, 2 * F)], [1, 0.5], rtol=1e-14)


def test_the_table_of_the_fisher():
    blocks = [{"kronecker_factored": 0.25, "best_kronecker": 0.125}, {"kronecker_factored": 1, "best_kronecker": 0.5}]
    errors = {"whole": {"F_tilde": 0.3751, "F_breve": 2}, "blocks": blocks, "train_error": 0.1234,
              "family": {"EKFAC": 0.3751, "diagonal": 2}}
    stage = classifier.Stage("now", np.eye(1), np.eye(1), np.eye(1), errors)
    assert classifier.fisher_table([stage]) == [
        ["relative error against the exact Fisher", "now"], ["EKFAC", "0.375"], ["diagonal", "2.000"],
        ["block of layer 0: A ⊗ G (best)", "0.250 (0.125)"],
        ["block of layer 1: A ⊗ G (best)", "1.000 (0.500)"], ["wrong labels", "12.3%"]]


def test_the_table_of_the_budget():
    judgements = [Judgement("exact", 0.0, math.nan, 0.0, 1.0, 1.0), Judgement("next", 0.5, 0.25, 10.04, 2.0, 0.9012)]
    assert classifier.budget_table(classifier.Budget(3, 0.1, 0.5, judgements))[1:] == [
        ["exact", "0.000", "", "0.0 deg", "1.00", "100.0%"], ["next", "0.500", "0.250", "10.0 deg", "2.00", "90.1%"]]


def test_the_family_of_a_stage(compared):
    _, stage = compared
    F, found = stage.F, stage.errors["family"]
    assert set(found) == set(family.FAMILY) - {"exact F"}
    # The damping of 1e-8 that F̂ needs shows as its root at most, in structures that are damped in their factors.
    close(found["F̃ (all blocks A ⊗ G)"], stage.errors["whole"]["F_tilde"], rtol=1e-6)
    close(found["A ⊗ G (exact damping)"], stage.errors["whole"]["F_breve"], rtol=1e-6)
    close(found["F̆ (factored damping)"], stage.errors["whole"]["F_breve"], rtol=1e-2)
    close(found["diagonal"], relative(np.diag(np.diag(F)), F), rtol=1e-6)
    assert found["exact blocks"] < min(found[name] for name in ("nearest A ⊗ G", "EKFAC", "KFRA", "TKFAC", "diagonal"))
    assert found["nearest A ⊗ G"] <= min(found[name] for name in ("A ⊗ G (exact damping)", "TKFAC", "KFRA"))


def test_each_of_the_family_judged_at_its_best_damping(compared):
    at, _ = compared
    y, targets = np.arange(30) % 10, at.sample(np.random.default_rng(0))
    entries = {e.name: e for e in family.compare(at, y, 1e-2, targets, ("exact F", "EKFAC", "diagonal"))}
    assert entries["exact F"].judgement.decrease == 1
    assert entries["exact F"].error < 1e-6          # the family is compared at a damping of 1e-8
    for name in ("EKFAC", "diagonal"):
        make = family.FAMILY[name]
        tried = [judge(at, y, 1e-2, [(name, make(at, d, targets))], dense=False)[0].decrease for d in family.DAMPINGS]
        assert entries[name].judgement.decrease == max(tried) < 1
        assert family.DAMPINGS[int(np.argmax(tried))] == entries[name].damping
        assert entries[name].seconds > 0 < entries[name].mebibytes
