"""A run in a folder: stopped at any moment it goes on to the same bits, and what is wrong is told in one clear line."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

import kfac_ref as kr
from kfac_ref import checkpoints, cli, files, training
from kfac_ref.checkpoints import NAME
from kfac_ref.experiments import history as history_module
from kfac_ref.experiments import recorder, run, script
from kfac_ref.experiments.settings import Settings
from kfac_ref.optimizers import KFAC

from .test_checkpoints import everything
from .test_training import bits

ROOT = Path(kr.__file__).parents[1]
COMPLETE = os.environ | {"PYTHONPATH": str(ROOT)}
TINY = {"net": "64-3-64", "batch": "40", "seed": 2}
TRIDIAGONAL = {"approximation": "block-tridiagonal", "expectation": "exact", "T3": 5, "tau2": 0.5}
OPTIMIZERS = {"kfac": {"T1": 2, "T2": 6, "T3": 3}, "kfac, tridiagonal": TRIDIAGONAL,
              "natural-gradient": {"lambda_0": 1.0}, "sgd": {"learning_rate": 0.01, "period": 4},
              "adam": {"learning_rate": 0.01}}
FILES = [script.LOCK, NAME, run.HISTORY, run.PICTURE, run.SETTINGS]


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Draw no picture where none is looked at, and measure on a few digits: both take most of a short run."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(b"a picture"))
        monkeypatch.setattr(run, "_picture", lambda *arguments: Figure())
    dataset = Settings.dataset

    def few(self):
        data = dataset(self)
        return replace(data, x=data.x[:200], labels=data.labels[:200], x_test=data.x_test[:20],
                       labels_test=data.labels_test[:20])

    monkeypatch.setattr(Settings, "dataset", few)


def settings(**more):
    return Settings(**TINY | more)


def start(folder, iterations=None, seconds=None, every=1000.0, report=lambda text: None, **more):
    return run.start(settings(**more), folder, iterations, seconds, every, report)


def resume(folder, iterations=None, seconds=None, every=1000.0, report=lambda text: None):
    return run.resume(folder, iterations, seconds, every, report)


def lines(folder, kind=None):
    """Return the lines of a history as strict JSON, without what was measured in seconds."""
    def refused(word):
        raise AssertionError(f"{word} is no JSON")
    found = [json.loads(line, parse_constant=refused) for line in (folder / run.HISTORY).read_text().splitlines()]
    return [line | {"seconds": 0} for line in found if kind in (None, line["kind"])]


def without_last_evaluation(folder, ends):
    """Return the lines but for evaluations at the ends of parts, at which one long run is not evaluated."""
    regular = set(training.evaluation_steps(10**6))
    return [line for line in lines(folder) if line["kind"] == "step" or line["k"] in regular or line["k"] not in ends]


def final(folder):
    """Return all of the last checkpoint that is not measured."""
    _, found = run.checkpoint(folder)
    return everything(found.state), bits(found.averaged)


def stop_at(monkeypatch, k, *signals):
    """Send signals to this process in the middle of step k."""
    steps = iter(range(1, 10**6))

    def stopping(function):
        def stopped(self, *arguments):
            if next(steps) == k:
                for number in signals:
                    os.kill(os.getpid(), number)
            return function(self, *arguments)
        return stopped

    monkeypatch.setattr(KFAC, "propose", stopping(KFAC.propose))
    monkeypatch.setattr(kr.optimizers.SGD, "step", stopping(kr.optimizers.SGD.step))


# A whole run


def test_what_a_run_leaves(tmp_path):
    folder, told = tmp_path / "new" / "folder", []
    history = start(folder, 12, report=told.append, optimizer="kfac", settings=OPTIMIZERS["kfac"])
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert told == []
    assert not history.interrupted
    steps, evaluations = lines(folder, "step"), lines(folder, "evaluation")
    assert [line["k"] for line in steps] == list(range(1, 13))
    assert [line["k"] for line in evaluations] == training.evaluation_steps(12)
    # The same as training without a folder.
    task = settings(settings=OPTIMIZERS["kfac"]).task()
    plain = training.train(task.optimizer, task.weights, task.x, task.y, 12, task.schedule, 2,
                           training.evaluation_steps(12), task.test)
    assert final(folder)[0] == everything(plain.state)
    assert final(folder)[1] == bits(plain.averaged) == bits(history.averaged)
    for line, record in zip(steps, plain.records, strict=True):
        for name in ("loss", "lambda_", "gamma", "alpha", "mu", "rho", "refreshed", "structure", "batch"):
            value = getattr(record, name)
            assert line[name] == (None if isinstance(value, float) and math.isnan(value) else value)
    for line, e in zip(evaluations, plain.evaluations, strict=True):
        assert replace(history_module.evaluation(line), seconds=0.0) == replace(e, seconds=0.0)
    raw = [json.loads(line) for line in (folder / run.HISTORY).read_text().splitlines()]
    assert run.records(folder) == [line for line in raw if line["kind"] == "step"]
    assert run.records(folder)[0]["seconds"]["gradient"] > 0
    content = json.loads((folder / run.SETTINGS).read_text())
    assert Settings(**content["settings"]) == settings(settings=OPTIMIZERS["kfac"])
    assert content["environment"]["numpy"] == np.__version__


def test_records_are_on_the_disk_as_they_happen(tmp_path, monkeypatch):
    step = kr.optimizers.SGD.step
    seen = []

    def look(self, state, x, y):
        seen.append([line["k"] for line in lines(tmp_path, "step")])
        return step(self, state, x, y)

    monkeypatch.setattr(kr.optimizers.SGD, "step", look)
    start(tmp_path, 4, optimizer="sgd")
    assert seen == [list(range(1, k)) for k in range(1, 5)]


@pytest.mark.slow
def test_seconds_end_a_run(tmp_path):
    history = start(tmp_path, seconds=0.03, every=0, optimizer="sgd")
    assert history.seconds >= 0.03
    assert len(lines(tmp_path, "step")) == history.state.k > 0
    again = resume(tmp_path, seconds=0.05)
    assert again.seconds >= 0.05
    assert [line["k"] for line in lines(tmp_path, "step")] == list(range(1, again.state.k + 1))


@pytest.mark.slow
def test_a_limit_that_is_passed_already_is_told(tmp_path):
    history = start(tmp_path, 6)
    files = {path: path.read_bytes() for path in tmp_path.iterdir() if path.name not in (run.PICTURE, script.LOCK)}
    for limits, said in (((6, None), True), ((3, None), True), ((None, history.seconds / 2), True), ((8, 1e-9), True),
                         ((7, 1000.0), False)):
        told = []
        again = resume(tmp_path, *limits, report=told.append)
        assert again.state.k == (6 if said else 7)
        assert told[1:] == [f"nothing to do: the run already has 6 steps and {again.seconds:.2f} s; --iterations "
                            "and --seconds are totals for the whole run"] * said
        assert not said or files == {path: path.read_bytes() for path in files}


def test_the_summary_tells_the_step_that_was_evaluated(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 12, signal.SIGINT)                       # between the evaluations of 11 and 13
        history = start(tmp_path, 20)
    assert history.interrupted
    assert history.state.k == 12
    assert "\nat step 11, the last that was evaluated: loss" in run.summary(tmp_path, history)
    assert "\nat step 14: loss" in run.summary(tmp_path, resume(tmp_path, 14))


def test_weights_are_read_out_of_a_checkpoint(tmp_path):
    last = start(tmp_path, 6).evaluations[-1]
    task, found = run.checkpoint(str(tmp_path))
    for weights, error in ((found.state.weights, last.error), (found.averaged, last.averaged_error)):
        np.testing.assert_allclose(task.model.at(weights, task.x).error(task.y), error, rtol=1e-13)
    assert last.error != last.averaged_error
    with pytest.raises(ValueError, match="holds no run"):
        run.checkpoint(tmp_path / "nowhere")


# Stopped, and gone on


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_in_parts_is_one_run_to_the_last_bit(tmp_path, optimizer, dtype):
    what = {"optimizer": optimizer.partition(",")[0], "settings": OPTIMIZERS[optimizer], "dtype": dtype,
            "batch": "growing:40:9"}
    start(tmp_path / "whole", 14, **what)
    start(tmp_path / "parts", 1, **what)
    for end in (3, 4, 8, 12, 14):
        told = []
        resume(tmp_path / "parts", end, report=told.append)
        assert re.fullmatch(rf"continuing from {tmp_path}/parts/checkpoint\.npz at step \d+", *told)
    assert final(tmp_path / "parts") == final(tmp_path / "whole")
    assert without_last_evaluation(tmp_path / "parts", {12}) == lines(tmp_path / "whole")
    assert {line["batch"] for line in lines(tmp_path / "whole", "step")} >= {40, 200}


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def hangup():
    """Have a SIGHUP that is not ignored, as it is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.usefixtures("hangup")
def test_a_signal_lets_the_step_end_and_saves_it(tmp_path, monkeypatch, number):
    start(tmp_path / "whole", 15)
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patch:
        stop_at(patch, 12, number)
        history = start(tmp_path / "stopped", 15)
    assert handlers == [signal.getsignal(number) for number in SIGNALS]
    assert history.interrupted
    assert history.state.k == 12
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == FILES
    assert not resume(tmp_path / "stopped", 15).interrupted
    assert final(tmp_path / "stopped") == final(tmp_path / "whole")
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


@pytest.mark.usefixtures("hangup")
def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path, monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, signal.SIGHUP)
        history = start(tmp_path, 5)
    assert (history.interrupted, history.state.k) == (False, 5)


def test_a_second_signal_ends_at_once_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    start(tmp_path / "whole", 15)
    start(tmp_path / "stopped", 9)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, signal.SIGINT, signal.SIGINT)
        history = resume(tmp_path / "stopped", 15)
    assert history.interrupted
    assert history.state.k == 11
    told = []
    resume(tmp_path / "stopped", 15, report=told.append)
    assert told == [f"continuing from {tmp_path}/stopped/checkpoint.npz at step 9"]
    assert final(tmp_path / "stopped") == final(tmp_path / "whole")
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")


def test_outside_of_the_main_thread_no_signal_is_caught(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(start(tmp_path, 3)))
    thread.start()
    thread.join()
    assert done[0].state.k == 3


EVERY = list(range(1, 13))


@pytest.mark.parametrize(("every", "saved"), [(0, EVERY), (1, EVERY), (2, EVERY[1::2]), (5, [5, 10, 12]), (1000, [12])])
def test_a_checkpoint_is_written_every_so_many_seconds_and_at_the_end(tmp_path, monkeypatch, every, saved):
    written, write = [], checkpoints.write

    def note(folder, checkpoint, optimizer, asked):
        written.append(checkpoint.state.k)
        write(folder, checkpoint, optimizer, asked)

    def one_second(self, state, x, y):
        clock.now += 1
        return step(self, state, x, y)

    clock, step = SimpleNamespace(now=0), kr.optimizers.KFAC.step
    monkeypatch.setattr(recorder, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(kr.optimizers.KFAC, "step", one_second)
    monkeypatch.setattr(checkpoints, "write", note)
    start(tmp_path, 12, every=every)
    assert written == saved


def killed(folder, end=17, after=10, **more):
    """Leave a folder as a process does that is killed: lines up to one step, the checkpoint of an earlier one."""
    start(folder, after, **more)
    early = {name: (folder / name).read_bytes() for name in (NAME,)}
    resume(folder, end)
    for name, content in early.items():
        (folder / name).write_bytes(content)
    (folder / run.PICTURE).unlink()


def check(folder, tmp_path, told, words=()):
    """Resume, and compare with a run that was never stopped."""
    start(tmp_path / "whole", 20)
    resume(folder, 20, report=told.append)
    for word in words:
        assert any(re.search(word, text) for text in told), told
    assert final(folder) == final(tmp_path / "whole")
    steps = [line["k"] for line in lines(folder, "step")]
    assert steps == sorted(set(steps))
    return without_last_evaluation(folder, {10, 12, 14, 17}) == lines(tmp_path / "whole")


def test_lines_after_the_checkpoint_are_written_anew(tmp_path):
    killed(tmp_path / "run")
    assert lines(tmp_path / "run", "step")[-1]["k"] == 17
    assert check(tmp_path / "run", tmp_path, [], ["at step 10$"])


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 2, 100])
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    killed(tmp_path / "run")
    path = tmp_path / "run" / run.HISTORY
    path.write_bytes(path.read_bytes()[:-cut])
    assert check(tmp_path / "run", tmp_path, [])


@pytest.mark.slow
@pytest.mark.parametrize("tail", ['{"kind": "step", "k": 1', "null\n", "\x00\x00\x00", "[]\n", '{"kind": "step"}\n',
                                  '{"k": 1}\n', "\n", '"text"\n'])
@pytest.mark.parametrize("end", [10, 12])
def test_what_is_no_line_ends_the_history(tmp_path, tail, end):
    killed(tmp_path / "run", after=10, end=12)
    path = tmp_path / "run" / run.HISTORY
    text = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["k"] <= end]
    path.write_text("".join(text) + tail)
    assert check(tmp_path / "run", tmp_path, [])


def step_line(k):
    """Return how to find the line of step k."""
    return lambda line: line["kind"] == "step" and line["k"] == k


def of_step(text, k):
    """Return where the line of step k is."""
    return next(i for i, line in enumerate(text) if step_line(k)(json.loads(line)))


def changed(line, **fields):
    return json.dumps({name: value for name, value in (json.loads(line) | fields).items() if value is not ...})


DEEP = "[" * 100_000
DAMAGES = {
    "no line": (lambda text: text.insert(7, "damaged"), r"line 8: .*line 8 is not JSON|line 8 is not JSON"),
    "a line twice": (lambda text: text.insert(of_step(text, 5), text[of_step(text, 5)]), "step 5 follows step 5"),
    "a missing line": (lambda text: text.pop(of_step(text, 5)), "step 6 follows step 4|evaluation of step 5 follows"),
    "two lines in another order": (lambda text: text.insert(of_step(text, 3), text.pop(of_step(text, 6))),
                                   "step 6 follows step 2"),
    "an evaluation twice": (lambda text: text.insert(0, text[0]), "an evaluation of step 0 follows step 0"),
    "an unknown kind": (lambda text: text.insert(2, '{"kind": "pause", "k": 2}'), "kind must be one of step, eval"),
    "a list": (lambda text: text.insert(2, "[1]"), "must hold an object, got list"),
    "nested deeply": (lambda text: text.insert(2, DEEP), "line 3 is not JSON: it is nested too deeply"),
    "a name twice": (lambda text: text.insert(2, '{"kind": "step", "k": 2, "k": 2}'), "'k' is given twice"),
    "a missing field": (lambda text: text.append(text.pop()) or text.__setitem__(
        of_step(text, 4), changed(text[of_step(text, 4)], loss=...)), "loss is missing"),
    "another optimizer's": (lambda text: text.__setitem__(of_step(text, 4), '{"kind": "step", "k": 4, "batch": 40, '
                                                          '"loss": 1, "learning_rate": 1}'), "lambda_ is missing"),
    "bytes": (lambda text: text.insert(3, "\udcff\udcfe"), "line 4 is not JSON"),
    "too short": (lambda text: text.__delitem__(slice(of_step(text, 9), None)), "ends with step 8, before the check"),
    "empty": (lambda text: text.clear(), "ends with step 0, before the checkpoint of step 10"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "word"), DAMAGES.values(), ids=DAMAGES)
def test_a_history_that_is_damaged_before_the_checkpoint_is_refused(tmp_path, capsys, damage, word):
    killed(tmp_path, after=10, end=12)
    path = tmp_path / run.HISTORY
    text = path.read_text().splitlines()
    damage(text)
    path.write_bytes("".join(line + "\n" for line in text).encode(errors="surrogateescape"))
    before = path.read_bytes()
    assert cli.main(["train", "--resume", str(tmp_path), "--iterations", "20"]) == 1
    error = capsys.readouterr().err
    assert re.search(word, error), error
    assert error.startswith(f"kfac-ref: the history of the run is damaged: {path}")
    assert error.endswith(f"; restore it, or begin the run again with --out {tmp_path} --force\n")
    assert error.count("\n") == 1
    assert path.read_bytes() == before


def test_a_history_that_is_missing_is_refused(tmp_path):
    start(tmp_path, 3)
    (tmp_path / run.HISTORY).unlink()
    with pytest.raises(ValueError, match=r"history\.jsonl cannot be read \(No such file or directory\); restore it"):
        resume(tmp_path, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["step", "evaluation"])
def test_whatever_type_a_field_of_a_line_has_there_is_no_traceback_nor_one_in_the_picture(tmp_path, kind):
    # Each field of a line in the middle, with each type: refused by name where the type is wrong, and else read.
    history = start(tmp_path, 9)
    content, opt = json.loads((tmp_path / run.SETTINGS).read_text())["settings"], settings().task().optimizer
    path, refused = tmp_path / run.HISTORY, 0
    text = path.read_text().splitlines()
    i = next(i for i, line in enumerate(text) if json.loads(line)["kind"] == kind and json.loads(line)["k"] == 4)
    for name in json.loads(text[i]):
        for value in (None, True, 4, 4.5, -1, "text", [], {}, [[1]], {"a": "b"}, 10**400):
            new = [*text[:i], changed(text[i], **{name: value}), *text[i + 1:]]
            path.write_text("".join(line + "\n" for line in new))
            try:
                found = history_module.read(path, opt)
            except ValueError as error:
                refused += str(error).startswith(f"{path}, line {i + 1}: ")
            else:
                assert [step["k"] for step in found.steps] == list(range(1, 10))
                run._picture(tmp_path, content, replace(history, evaluations=found.evaluations))
    assert refused > 5 * len(json.loads(text[i]))


def test_without_a_checkpoint_it_begins_again(tmp_path):
    killed(tmp_path / "run")
    (tmp_path / "run" / NAME).unlink()
    (tmp_path / "run" / run.HISTORY).write_text("damaged")
    assert check(tmp_path / "run", tmp_path, [], ["holds no checkpoint yet: starting again from step 0"])


def test_a_damaged_checkpoint_is_refused_and_says_what_to_do(tmp_path):
    start(tmp_path, 10)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-1000])
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    told = []
    with pytest.raises(ValueError, match=rf"^{path} is damaged: .*; restore it, or begin the run again with "
                                         rf"--out {tmp_path} --force$"):
        resume(tmp_path, 20, report=told.append)
    assert told == []
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert run.start(settings(), tmp_path, 3, None, report=told.append, force=True).state.k == 3


def test_checkpoints_of_other_settings_are_refused_by_name(tmp_path):
    start(tmp_path, 3)
    path = tmp_path / run.SETTINGS
    path.write_text(path.read_text().replace('"seed": 2', '"seed": 5'))
    with pytest.raises(ValueError, match="is of another setting seed: 2, this run has 5"):
        resume(tmp_path, 20)


def test_another_machine_is_reported(tmp_path, monkeypatch):
    start(tmp_path, 3)
    there = checkpoints.environment
    monkeypatch.setattr(checkpoints, "environment", lambda: there() | {"threads": "17"})
    told = []
    resume(tmp_path, 4, report=told.append)
    assert told[1].startswith("results may not be bit-identical to an uninterrupted run: threads 17, was ")
    assert len(told) == 2


# Refusals


@pytest.mark.parametrize(("limits", "word"), [
    ((None, None, 60), "give iterations or seconds: a run must know where to stop"),
    ((0, None, 60), "iterations must be an integer of at least 1, got 0"),
    ((None, 0, 60), "seconds must be above 0, got 0"),
    ((None, -1, 60), "seconds must be above 0, got -1"),
    ((3, None, -1), "checkpoint-every must be at least 0, got -1")])
def test_limits_are_refused_before_anything_is_made(tmp_path, limits, word):
    with pytest.raises(ValueError, match=word):
        run.start(settings(), tmp_path / "new", *limits)
    assert not (tmp_path / "new").exists()
    start(tmp_path / "old", 2)
    with pytest.raises(ValueError, match=word):
        run.resume(tmp_path / "old", *limits)


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path):
    start(tmp_path, 3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    word = "holds a run already: continue it with --resume .*, choose another folder, or give --force to remove it"
    with pytest.raises(ValueError, match=word):
        start(tmp_path, 3, seed=9)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / NAME).unlink()                                              # steps are worth something too
    with pytest.raises(ValueError, match=word):
        start(tmp_path, 3)
    (tmp_path / "notes.txt").write_text("old")
    assert run.start(settings(seed=9), tmp_path, 5, None, report=lambda text: None, force=True).state.k == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "notes.txt"])
    assert resume(tmp_path, 6).state.k == 6


@pytest.mark.parametrize(("name", "link"), [*((name, False) for name in run.FILES),
                                            *((name, True) for name in (*run.FILES, script.LOCK))])
def test_files_that_are_no_run_s_are_not_replaced(tmp_path, capsys, name, link):
    folder, precious = tmp_path / "folder", tmp_path / "precious"
    folder.mkdir()
    for path in (precious, folder / "notes.txt"):
        path.write_text('{"mine": 1}')
    if link:
        (folder / name).symlink_to(precious)
    else:
        (folder / name).write_text('{"mine": 1}')
    command = ["train", "--iterations", "3", "--net", "64-3-64", "--batch", "40", "--out", str(folder)]
    assert cli.main(command) == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    assert re.fullmatch(rf"kfac-ref: {folder / name} (exists|is a symbolic link)[^\n]*\n", error)
    assert (folder / name).read_text() == precious.read_text() == '{"mine": 1}'
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, "notes.txt"])
    assert cli.main([*command, "--force"]) == (1 if name == script.LOCK else 0)     # nothing is lost there
    assert precious.read_text() == (folder / "notes.txt").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("name", [run.HISTORY, NAME, run.PICTURE])
def test_a_run_goes_on_through_no_link(tmp_path, name):
    start(tmp_path / "run", 3)
    (tmp_path / "run" / name).replace(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(files.OverwriteError, match=f"{name} is a symbolic link to"):
        resume(tmp_path / "run", 5)
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_folder_that_is_in_use_is_refused_until_it_is_free(tmp_path):
    start(tmp_path, 3)
    (tmp_path / "new").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for folder, begin in ((tmp_path, resume), (tmp_path / "new", start)):
        word = f"{folder} is in use by another process"
        with script.locked(folder), pytest.raises(ValueError, match=word):
            begin(folder, 5)
    assert before == {path: path.read_bytes() for path in before}
    assert resume(tmp_path, 5).state.k == start(tmp_path / "new", 5).state.k == 5


@pytest.mark.skipif(script.fcntl is None, reason="this system has no locks of this kind")
def test_a_folder_is_free_at_once_although_a_child_has_inherited_its_lock(tmp_path, monkeypatch):
    flock, inherited = script.fcntl.flock, []

    def and_fork(file, operation):
        inherited.append(os.dup(file.fileno()))             # what a forked child holds until it is another program
        flock(file, operation)

    monkeypatch.setattr(script.fcntl, "flock", and_fork)
    for _ in range(2):
        with script.locked(tmp_path):
            pass
    for descriptor in inherited:
        os.close(descriptor)


def test_where_there_are_no_locks_it_runs_without(tmp_path, monkeypatch):
    def none(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with script.locked(tmp_path):
        monkeypatch.setattr(script.fcntl, "flock", none)                    # a file system that has none
        assert start(tmp_path, 3).state.k == 3
        monkeypatch.setattr(script, "fcntl", None)                          # Windows
        assert resume(tmp_path, 4).state.k == 4


def test_a_run_that_took_no_step_can_be_begun_again(tmp_path):
    with pytest.raises(ValueError, match="x is a batch of 5, too small for tau1"):
        start(tmp_path, 3, batch="5")
    start(tmp_path, 3, batch="8")
    assert [line["batch"] for line in lines(tmp_path, "step")] == [8, 8, 8]


def test_data_that_do_not_fit_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="net must have 64 outputs for the inputs of digits"):
        start(tmp_path / "new", 3, net="64-8")
    assert not (tmp_path / "new").exists()


def test_a_folder_without_a_run_or_with_a_damaged_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file holds no run: there is no run\.json in it"):
        resume(tmp_path / "file", 3)
    with pytest.raises(ValueError, match=r"holds no run: there is no run\.json in it"):
        resume(tmp_path, 3)
    path = tmp_path / run.SETTINGS
    for content in ("", "{", "[]", "{}", '{"settings": 3}', '{"settings": {"unknown": 1}}',
                    '{"settings": {"net": "x"}}', '{"settings": {"data": 5}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"run\.json is damaged: "):
            resume(tmp_path, 3)


def test_other_data_are_refused(tmp_path, monkeypatch):
    start(tmp_path, 3)
    dataset = Settings.dataset
    monkeypatch.setattr(Settings, "dataset", lambda self: replace(dataset(self), x=dataset(self).x[::-1]))
    with pytest.raises(ValueError, match=r"data digits are not those with which the run in .* began"):
        resume(tmp_path, 5)


# A run that diverges


def lowest(folder):
    """Return step and loss of the evaluation with the lowest loss, and the steps that the history holds."""
    best = min((line for line in lines(folder, "evaluation") if line["loss"] is not None), key=lambda e: e["loss"])
    return best["k"], best["loss"], [line["k"] for line in lines(folder, "step")]


def check_diverged(folder, error, k, what):
    """Look at what a run leaves that diverges after step k, and return the step of its checkpoint."""
    best, loss, steps = lowest(folder)
    assert re.fullmatch(f"training diverged after step {k}: {what}; {folder / NAME} is of step {best}, where the loss "
                        rf"was lowest \({loss:.3g}\); begin a new run with a smaller learning rate, or for kfac a "
                        "larger lambda_0 or batch", error), error
    (line,) = lines(folder, "diverged")
    assert (line["k"], line["checkpoint"], steps[-1]) == (k, best, k)
    task, found = run.checkpoint(folder)
    assert found.state.k == best
    np.testing.assert_allclose(task.model.at(found.state.weights, task.x).loss(task.y), loss, rtol=1e-12)
    return best


def enlarge(monkeypatch, factor, after):
    """Let the steps of SGD after so many multiply the weights."""
    step = kr.optimizers.SGD.step

    def enlarged(self, state, x, y):
        new, record = step(self, state, x, y)
        return replace(new, weights=tuple(w * (factor if new.k > after else 1) for w in new.weights)), record

    monkeypatch.setattr(kr.optimizers.SGD, "step", enlarged)


@pytest.fixture
def uphill(monkeypatch):
    """Let the loss rise after step 19, which is one of those that are evaluated."""
    enlarge(monkeypatch, 1.2, 19)


@pytest.mark.parametrize("every", [0, 1000])
def test_a_run_that_ends_far_above_its_start_says_so_and_leaves_its_best_weights(tmp_path, uphill, every):
    with pytest.raises(ValueError, match="training diverged") as caught:
        start(tmp_path, 70, every=every, optimizer="sgd", settings={"learning_rate": 0.01})
    first, *_, last = lines(tmp_path, "evaluation")
    assert last["loss"] > 2 * first["loss"]
    what = f"the loss over all training examples was {first['loss']:.3g} at the start and is {last['loss']:.3g}"
    best = check_diverged(tmp_path, str(caught.value), 70, re.escape(what))
    assert best == 19
    assert (tmp_path / run.PICTURE).exists()
    # The same steps again: to the same end, and from a checkpoint that stays.
    told = []
    with pytest.raises(ValueError, match=r"training diverged after step 75: .*is of step 19,"):
        resume(tmp_path, 75, report=told.append)
    assert told == [f"continuing from {tmp_path / NAME} at step 19"]
    assert run.checkpoint(tmp_path)[1].state.k == 19


def test_while_the_loss_is_far_above_its_start_only_the_best_state_is_saved(tmp_path, monkeypatch, uphill):
    written, write = [], checkpoints.write

    def note(folder, checkpoint, optimizer, asked):
        written.append(checkpoint.state.k)
        write(folder, checkpoint, optimizer, asked)

    monkeypatch.setattr(checkpoints, "write", note)
    with monkeypatch.context() as patch:
        stop_at(patch, 65, signal.SIGTERM)
        assert start(tmp_path, 70, every=0, optimizer="sgd", settings={"learning_rate": 0.01}).interrupted
    first, losses = lines(tmp_path, "evaluation")[0]["loss"], {}
    for k in range(1, 66):
        losses[k] = [line["loss"] for line in lines(tmp_path, "evaluation") if line["k"] <= k][-1]
    far = [k for k, loss in losses.items() if loss > 2 * first]
    assert 22 < far[0] < 60
    assert far == list(range(far[0], 66))
    assert written == [*range(1, far[0]), 19]


def test_a_noisy_batch_is_no_divergence(tmp_path, monkeypatch):
    step = kr.optimizers.SGD.step

    def noisy(self, state, x, y):
        state, record = step(self, state, x, y)
        return state, replace(record, loss=1e9)

    monkeypatch.setattr(kr.optimizers.SGD, "step", noisy)
    start(tmp_path, 5, optimizer="sgd", settings={"learning_rate": 0.01})
    assert lines(tmp_path, "diverged") == []


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning",
                            "ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("every", [0, 1000])
def test_a_run_whose_weights_are_no_longer_finite_leaves_its_best_weights(tmp_path, monkeypatch, every, capsys):
    enlarge(monkeypatch, 1e200, 12)
    assert cli.main(["train", "--out", str(tmp_path), "--iterations", "40", "--checkpoint-every", str(every), "--batch",
                     "40", "--net", "64-3-64", "--optimizer", "sgd", "--set", "learning_rate=0.02"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("kfac-ref: ")
    k = lines(tmp_path, "step")[-1]["k"]
    check_diverged(tmp_path, error.removeprefix("kfac-ref: ").rstrip("\n"), k, ".* must be finite: .*")


def test_a_run_that_never_falls_leaves_its_start(tmp_path):
    with pytest.raises(ValueError, match=r"training diverged after step 30: .*is of step 0, where the loss was lowest"):
        start(tmp_path, 30, optimizer="sgd", settings={"learning_rate": 50})
    task, found = run.checkpoint(tmp_path)
    assert bits(found.state.weights) == bits(task.weights)
    with pytest.raises(ValueError, match="training diverged after step 31: "):
        resume(tmp_path, 31)
    assert [line["k"] for line in lines(tmp_path, "step")] == list(range(1, 32))


# A disk that is full


def full(*arguments, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name", "words"), [
    (np, "savez", r"cannot write .*run.checkpoint\.npz \(No space .*; the checkpoint of step 10 is intact"),
    (os, "fsync", r"cannot write .*run.history\.jsonl \(No space left on device\)"),
    (Path, "replace", r"cannot write .*run.history\.jsonl \(No space left on device\)"),
    (recorder.Recorder, "_line", r"cannot write .*history\.jsonl \(No space.*; the checkpoint of step 10 is intact"),
    (Figure, "savefig", r"cannot write .*run.history\.png \(No space .*; the checkpoint of step 14 is intact")])
def test_a_full_disk_is_one_clear_line_and_the_checkpoint_is_intact(tmp_path, monkeypatch, capsys, owner, name, words):
    start(tmp_path / "run", 10)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        assert cli.main(["train", "--resume", str(tmp_path / "run"), "--iterations", "14"]) == 1
    error = capsys.readouterr().err
    assert re.search(f"^kfac-ref: .*{words}$", error), error
    assert error.count("\n") == 1
    assert check(tmp_path / "run", tmp_path, [], [f"at step {14 if name == 'savefig' else 10}$"])


LIMITED = """
import contextlib, io, json, resource, signal, sys
from kfac_ref import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)               # a write over the limit is then an OSError
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    errors, told, folder = io.StringIO(), io.StringIO(), sys.argv[2].format(limit)
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(["train", *json.loads(sys.argv[1]), folder])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if "is intact" in errors.getvalue():
        with contextlib.redirect_stdout(told):
            assert cli.main(["train", "--resume", folder, "--iterations", "100"]) == 0
    print(json.dumps([limit, status, errors.getvalue(), told.getvalue()]))
"""


@pytest.mark.slow
def test_at_any_size_of_the_disk_a_run_ends_with_one_line_and_goes_on(tmp_path):
    # 100 bytes do not hold the settings, 2000 not the first steps, 9000 not a checkpoint, 25000 not the later steps.
    limits = (0, 100, 700, 2000, 9000, 25000)
    options = ["--net", "64-3-64", "--batch", "40", "--optimizer", "sgd", "--set", "learning_rate=0.01",
               "--iterations", "100", "--checkpoint-every", "0", "--out"]
    done = subprocess.run([sys.executable, "-c", LIMITED, json.dumps(options), f"{tmp_path}/{{}}", *map(str, limits)],
                          env=COMPLETE, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [limit for limit, *_ in outcomes] == list(limits)
    intact = set()
    for limit, status, error, told in outcomes:
        assert status == 1, (limit, error)
        assert error.count("\n") == 1
        assert re.match(r"kfac-ref: cannot write .*File too large", error), error
        found = re.search(r"the checkpoint of step (\d+) is intact", error)
        intact.add(bool(found))
        assert not [path for path in (tmp_path / str(limit)).iterdir() if path.suffix == ".part"]
        if found:
            folder = tmp_path / str(limit)
            assert told.startswith(f"continuing from {folder}/checkpoint.npz at step {found[1]}\n")
            assert [line["k"] for line in lines(folder, "step")] == list(range(1, 101))
    assert intact == {True, False}


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert cli.main(["train", "--iterations", "3", "--net", "64-3-64", "--out", str(folder)]) == 1
        assert re.fullmatch(f"kfac-ref: {folder} cannot be written: [\\w ]+\n", capsys.readouterr().err)


# The command line


def test_the_command_runs_and_goes_on(tmp_path, capsys, monkeypatch):
    out = tmp_path / "with space"
    options = "--net 64-3-64 --batch 40 --seed 2 --set T1=2 --set T2=6 --set T3=3 --dtype float32 --weight-decay 0"
    assert cli.main(["train", *options.split(), "--iterations", "6", "--out", str(out)]) == 0
    printed, error = capsys.readouterr()
    assert error == ""
    first, second, third, fourth = printed.splitlines()
    assert first == "kfac on digits, 64-3-64 (451 parameters), batch 40, float32, seed 2"
    assert re.fullmatch(r"6 steps in \d+\.\d\d s \(without evaluation\), \S+ ms per step", second)
    assert re.fullmatch(r"at step 6: loss \S+, training error \S+ \(of the averaged iterate \S+\), held-out error \S+",
                        third)
    assert fourth == f"{out}/ holds history.jsonl, history.png, checkpoint.npz, run.json"
    with monkeypatch.context() as patch:
        stop_at(patch, 3, signal.SIGTERM)
        assert cli.main(["train", "--resume", str(out), "--seconds", "100"]) == 130
    printed, error = capsys.readouterr()
    assert printed.startswith(f"continuing from {out}/checkpoint.npz at step 6\nkfac on digits")
    assert "\nat step 9: loss" in printed                                   # step 9 is one of those that are evaluated
    assert error == f"interrupted after step 9; continue with: kfac-ref train --resume '{out}' --seconds 100\n"
    assert cli.main(["train", "--resume", str(out), "--iterations", "12", "--checkpoint-every", "0"]) == 0
    start(tmp_path / "whole", 12, dtype="float32", weight_decay=0.0, settings={"T1": 2, "T2": 6, "T3": 3})
    assert final(out) == final(tmp_path / "whole")


@pytest.mark.parametrize(("options", "word"), [
    ("--out {}", "give iterations or seconds: a run must know where to stop"),
    ("--out {} --iterations 0", "iterations must be an integer of at least 1, got 0"),
    ("--out {} --iterations 3 --data iris", "data must be digits, curves or mnist:FOLDER, got 'iris'"),
    ("--out {} --iterations 3 --data digits:", "data must be digits, curves or mnist:FOLDER, got 'digits:'"),
    ("--out {} --iterations 3 --data mnist:/nowhere", "folder /nowhere does not hold t10k-images-idx3-ubyte"),
    ("--out {} --iterations 3 --net small", "net must be one of .*, or widths such as 64-32-10; got 'small'"),
    ("--out {} --iterations 3 --net 32-3-32", "net must have 64 inputs, as digits has; it has 32"),
    ("--out {} --iterations 3 --optimizer lbfgs", "optimizer must be one of adam, kfac, .*; got 'lbfgs'"),
    ("--out {} --iterations 3 --set T9=1", "a setting of kfac must be one of T1, T2, T3, .*; got 'T9'"),
    ("--out {} --iterations 3 --set T1=0", "T1 must be an integer of at least 1, got 0"),
    ("--out {} --iterations 3 --set T1", "--set must be NAME=VALUE, got 'T1'"),
    ("--out {} --iterations 3 --set T1=x", "T1 must be an integer of at least 1, got 'x'"),
    ("--out {} --iterations 3 --set T1=[1]", "--set T1 must be a number, true, false, null or a name, got '.1.'"),
    ("--out {} --seconds 0", "seconds must be above 0, got 0"),
    ("--out {} --iterations 3 --batch 0", "batch must be at least 1 example, got 0"),
    ("--out {} --iterations 3 --batch 201", "batch must be at most the 200 examples of digits, got 201"),
    ("--out {} --iterations 3 --batch many", "batch must be a number, full, growing or growing:FIRST:STEP, got 'many'"),
    ("--resume {}", "holds no run: there is no run.json in it"),
    ("--resume {} --iterations 3", "holds no run: there is no run.json in it"),
    ("--resume {} --iterations 3 --seed 0", "--seed cannot be given with --resume: a run keeps its settings"),
    ("--resume {} --iterations 3 --weight-decay 0", "--weight-decay cannot be given with --resume"),
    ("--resume {} --iterations 3 --set T1=2", "--set cannot be given with --resume"),
    ("--resume {} --iterations 3 --force", "--force cannot be given with --resume")])
def test_what_the_command_refuses_is_one_clear_line(tmp_path, capsys, options, word):
    assert cli.main(["train", *options.format(tmp_path / "new").split()]) == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    assert re.fullmatch(f"kfac-ref: .*{word}.*\n", error), error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", ["", "--out a --resume b", "--out a --iterations x", "--iterations 3"])
def test_wrong_usage(options, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *options.split()])
    assert ended.value.code == 2
    assert "usage: kfac-ref train" in capsys.readouterr().err


def test_values_of_settings():
    read = {text: cli._setting(text) for text in ("a=1", "a=0.5", "a=true", "a=null", "a=1e3", "a=-2")}
    assert [value for _, value in read.values()] == [1, 0.5, True, None, 1000.0, -2]
    assert {name for name, _ in read.values()} == {"a"}


@pytest.mark.slow
def test_the_picture_is_drawn_and_says_what_the_run_came_to(tmp_path, monkeypatch):
    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **more: drawn.append(self) or savefig(self, *a, **more))
    start(tmp_path, 5)
    history = resume(tmp_path, 7)
    assert (tmp_path / run.PICTURE).read_bytes().startswith(b"\x89PNG")
    text = " ".join(drawn[1].get_supxlabel().split())
    assert text.startswith(f"kfac on digits, batch 40, seed 2, float64: 7 steps in {history.seconds:.1f} s; training "
                           f"error {history.evaluations[-1].error:.4g} (")
    assert len(drawn[1].axes[2].lines[0].get_xdata()) == 7                  # the steps before the checkpoint as well


# Real processes


def train(*arguments, **more):
    """Begin ``kfac-ref train`` in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "kfac_ref", "train", *map(str, arguments)], env=COMPLETE, cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def wait_for(folder, growth=1):
    """Wait until a run has recorded more."""
    path = folder / run.HISTORY
    before, deadline = path.stat().st_size if path.exists() else 0, time.monotonic() + 60
    while not path.exists() or path.stat().st_size < before + growth:
        assert time.monotonic() < deadline, "no step was recorded"
        time.sleep(0.005)


LONG = ["--net", "64-8-64", "--batch", "100", "--set", "T3=5", "--dtype", "float32"]
ENDLESS = ["--iterations", "1000000", "--checkpoint-every", "0.03"]     # no machine is done before it is ended


def same(folder, other):
    """Assert that two finished runs of the whole digits are the same in every bit and line."""
    with np.load(folder / NAME) as a, np.load(other / NAME) as b:
        assert a.files == b.files
        for name in a.files:
            if name != "header":
                assert a[name].tobytes() == b[name].tobytes()
        heads = [json.loads(file["header"].item()) | {"seconds": 0, "sha256": ""} for file in (a, b)]
    assert heads[0] == heads[1]
    assert lines(folder) == lines(other)


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path, capsys):
    folder = tmp_path / "run"
    with train(*LONG, *ENDLESS, "--out", folder) as process:
        wait_for(folder)
        for place in ("--resume", "--out"):
            assert cli.main(["train", "--iterations", "500", place, str(folder)]) == 1
        process.kill()
    in_use, holds = capsys.readouterr().err.splitlines()
    assert in_use == f"kfac-ref: {folder} is in use by another process"
    assert "holds a run already" in holds
    assert (folder / script.LOCK).read_bytes() == b""
    with script.locked(folder):
        pass


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_bits(tmp_path):
    folder, outcomes = tmp_path / "run", []
    for place in ([*LONG, "--out"], ["--resume"], ["--resume"]):
        with train(*ENDLESS, *place, folder) as process:
            wait_for(folder)
            time.sleep(random.uniform(0, 0.1))
            process.kill()
        outcomes.append(process.returncode)
    assert outcomes == [-signal.SIGKILL] * 3
    with (folder / run.HISTORY).open("a") as file:
        file.write('{"kind": "step", "k": 99')
    # And once it is asked to end: then nothing is lost.
    with train(*ENDLESS, "--resume", folder) as process:
        wait_for(folder)
        process.send_signal(signal.SIGTERM)
        printed, error = process.communicate()
    assert printed.startswith(("continuing from", f"{folder} holds no checkpoint yet"))
    assert process.returncode == 130
    k = re.fullmatch(rf"interrupted after step (\d+); continue with: kfac-ref train --resume {folder} "
                     r"--iterations 1000000\n", error)[1]
    until = ["--iterations", str(int(k) + 50)]
    with train(*until, "--resume", folder) as process:
        printed, error = process.communicate()
    assert (process.returncode, error) == (0, "")
    assert printed.startswith(f"continuing from {folder}/checkpoint.npz at step {k}\n")
    with train(*LONG, *until, "--out", tmp_path / "whole") as whole:
        assert whole.communicate()[1] == ""
    same(folder, tmp_path / "whole")
