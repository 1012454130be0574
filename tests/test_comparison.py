"""Comparisons from a file: tuned on other seeds, going on where they were interrupted, refused field by field."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from kfac_ref import cli, plotting, training
from kfac_ref.experiments import comparison, results, script, tables
from kfac_ref.experiments.comparison import Comparison, Method
from kfac_ref.experiments.settings import Settings

pytestmark = pytest.mark.slow

CONTENT = {
    "title": "Tiny digits", "data": "digits", "net": "64-3-64", "seeds": [0, 1], "tuning_seeds": [100, 101],
    "levels": [8, 6, 5], "weight_decay": 1e-3,
    "methods": {"K-FAC, m = 40": {"optimizer": "kfac", "batch": "40", "iterations": 6, "settings": {"T3": 5},
                                  "grid": {"lambda_0": [0.1, 10]}},
                "SGD, all": {"optimizer": "sgd", "batch": "full", "iterations": 8,
                             "settings": {"learning_rate": 0.01}}}}


def run_file(path, out, report=print):
    """Run the comparison in a file, as the command line does."""
    return results.run_all(comparison.read(path), out, report)


@pytest.fixture(autouse=True)
def few(monkeypatch, request):
    """Measure on a few digits."""
    dataset = Settings.dataset

    def first(self):
        data = dataset(self)
        return replace(data, x=data.x[:120], labels=data.labels[:120], x_test=data.x_test[:20],
                       labels_test=data.labels_test[:20])

    monkeypatch.setattr(Settings, "dataset", first)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(b"a picture"))


def changed(**changes):
    return {name: value for name, value in (CONTENT | changes).items() if value is not ...}


def method(**changes):
    """Return the content with one method changed."""
    kfac = CONTENT["methods"]["K-FAC, m = 40"]
    return changed(methods={"K": {name: value for name, value in (kfac | changes).items() if value is not ...}})


def write(path, content=CONTENT):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def counted(monkeypatch):
    """Note each run that is really made: optimizer, settings, seed, iterations."""
    made, run = [], comparison.run

    def note(compared, method, settings, seed, data=None, iterations=None, name="training", evaluate_at=None):
        made.append((method.optimizer, dict(settings), seed, iterations))
        return run(compared, method, settings, seed, data, iterations, name, evaluate_at)

    monkeypatch.setattr(comparison, "run", note)
    return made


def plain(folder):
    """Return what a comparison left, without measured seconds."""
    found = json.loads((folder / "results.json").read_text())
    for entry in found["methods"].values():
        for result in entry["runs"]:
            result["evaluations"]["seconds"] = 0
            result["levels"] = {level: hit and hit[0] for level, hit in result["levels"].items()}
    return {name: value for name, value in found.items() if name not in ("caption", "sha256")}


# From end to end


def test_a_comparison_from_the_command_line(tmp_path, capsys, monkeypatch):
    made = counted(monkeypatch)
    assert cli.main(["experiment", str(write(tmp_path / "compared.json"))]) == 0
    out = tmp_path / "compared"
    printed, error = capsys.readouterr()
    assert error == ""
    assert sorted(path.name for path in out.iterdir()) == [script.LOCK, "comparison.md",
                                                           "comparison.png", "results.json", "runs"]
    # Each of the grid on the tuning seeds, then the chosen on the others; what has nothing to choose is not tuned.
    grid = [("kfac", {"T3": 5, "lambda_0": value}, seed, 6) for value in (0.1, 10) for seed in (100, 101)]
    chosen = json.loads((out / "results.json").read_text())["methods"]["K-FAC, m = 40"]["settings"]
    final = [("kfac", chosen, seed, 6) for seed in (0, 1)]
    assert made == grid + final + [("sgd", {"learning_rate": 0.01}, seed, 8) for seed in (0, 1)]
    assert len(list((out / "runs").iterdir())) == len(made)
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "comparison.md").read_text().splitlines()
    assert table[0] == "Tiny digits"
    assert table[2].startswith("| error at most |  | 8 | 6 | 5 | last error | of the averaged iterate |")
    assert [line.split("|")[1].strip() for line in table[4:]] == ["K-FAC, m = 40", "", "SGD, all", ""]
    assert "\n".join(table[2:]) in printed
    assert "K-FAC, m = 40: chosen {'T3': 5, 'lambda_0': " in printed


def test_its_runs_are_those_of_training_alone(tmp_path, undrawn):
    histories = run_file(write(tmp_path / "a.json"), tmp_path / "a", lambda text: None)
    numbers = json.loads((tmp_path / "a" / "results.json").read_text())
    for name, asked in CONTENT["methods"].items():
        for seed, history in zip(CONTENT["seeds"], histories[name], strict=True):
            task = Settings(net="64-3-64", optimizer=asked["optimizer"], batch=asked["batch"], seed=seed,
                            settings=numbers["methods"][name]["settings"], weight_decay=1e-3).task()
            alone = training.train(task.optimizer, task.weights, task.x, task.y, asked["iterations"], task.schedule,
                                   seed, training.evaluation_steps(asked["iterations"]), task.test)
            assert [replace(e, seconds=0.0) for e in history.evaluations] == \
                [replace(e, seconds=0.0) for e in alone.evaluations]


def test_the_chosen_settings_have_the_best_score(tmp_path, undrawn):
    run_file(write(tmp_path / "a.json"), tmp_path / "a", lambda text: None)
    found = json.loads((tmp_path / "a" / "results.json").read_text())["methods"]["K-FAC, m = 40"]
    for trial in found["trials"]:
        scores = []
        for seed in (100, 101):
            path, = [p for p in (tmp_path / "a" / "runs").iterdir() if f"-{seed}-" in p.name
                     and trial["settings"].items() <= json.loads(p.read_text())["settings"].items()]
            evaluations = json.loads(path.read_text())["evaluations"]
            errors = zip(evaluations["k"], evaluations["error"], strict=True)
            scores.append(np.mean([math.log(error) for k, error in errors if k >= 0.6]))
        np.testing.assert_allclose(trial["score"], np.mean(scores), rtol=1e-13)
    assert found["settings"] == min(found["trials"], key=lambda t: t["score"])["settings"]


@pytest.mark.parametrize("at", [1, 3, 5, 7])
def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path, capsys, monkeypatch, undrawn, at):
    path = write(tmp_path / "a.json")
    run_file(path, tmp_path / "whole", lambda text: None)
    train, left = training.train, iter(range(at - 1))

    def interrupted(*arguments, **more):
        history = train(*arguments, **more)
        if next(left, None) is None:
            history.interrupted = True
        return history

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", interrupted)
        assert cli.main(["experiment", str(path), "--out", str(tmp_path / "parts")]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    done = {file: file.read_bytes() for file in (tmp_path / "parts" / "runs").iterdir()}
    assert len(done) == at - 1
    made = counted(monkeypatch)
    run_file(path, tmp_path / "parts", lambda text: None)
    assert len(made) == 8 - len(done)
    assert all(file.read_bytes() == content for file, content in done.items())
    assert plain(tmp_path / "parts") == plain(tmp_path / "whole")
    # And nothing is run again that is done.
    made.clear()
    run_file(path, tmp_path / "parts", lambda text: None)
    assert made == []


def test_only_what_a_changed_file_asks_for_anew_is_run(tmp_path, monkeypatch, undrawn):
    path, out = tmp_path / "a.json", tmp_path / "a"
    run_file(write(path), out, lambda text: None)
    made = counted(monkeypatch)
    run_file(write(path, changed(seeds=[0, 1, 2], levels=[3], title="Another")), out, lambda text: None)
    assert [seed for *_, seed, _ in made] == [2, 2]
    made.clear()
    run_file(write(path, changed(dtype="float32")), out, lambda text: None)
    assert len(made) == 8


def test_the_help_names_every_key_of_a_file(capsys):
    with pytest.raises(SystemExit):
        cli.main(["experiment", "--help"])
    words = set(re.findall(r"\w+", capsys.readouterr().out.partition("FILE.json holds")[2]))
    keys = {f.name for kind in (Comparison, Method) for f in fields(kind)} - {"base"} | {*comparison.COMMON}
    assert keys <= words


def test_a_batch_as_a_number_is_that_batch(tmp_path):
    assert comparison.read(write(tmp_path / "a.json", method(batch=40))) == \
        comparison.read(write(tmp_path / "b.json", method(batch="40")))


def test_a_relative_folder_is_taken_from_the_file(tmp_path):
    found = comparison.read(write(tmp_path / "a.json", changed(data="mnist:here", net=...)))
    assert found.base.data == f"mnist:{tmp_path / 'here'}"
    assert found.base.model().network.sizes[0] == 784


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning",
                            "ignore:invalid value encountered:RuntimeWarning")
def test_what_blew_up_is_not_chosen_and_not_run_again(tmp_path, monkeypatch, undrawn, capsys):
    asked = {"optimizer": "sgd", "batch": "full", "iterations": 12, "grid": {"learning_rate": [1e200, 0.01]}}
    path, out = write(tmp_path / "a.json", changed(methods={"SGD": asked})), tmp_path / "a"
    run_file(path, out, lambda text: None)
    found = json.loads((out / "results.json").read_text())["methods"]["SGD"]
    assert found["settings"] == {"learning_rate": 0.01}
    assert [trial["score"] is None for trial in found["trials"]] == [True, False]
    made = counted(monkeypatch)
    run_file(path, out, lambda text: None)
    assert made == []
    # All of them: one clear line, the same at the second time.
    write(path, changed(methods={"SGD": asked | {"grid": {"learning_rate": [1e200, 1e201]}}}))
    for _ in range(2):
        assert cli.main(["experiment", str(path)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"kfac-ref: {path}: SGD with {{'learning_rate': 1e+200}} and seed 0 diverged\n")
        assert error.count("\n") == 1


def test_a_damaged_result_is_named(tmp_path, capsys, undrawn):
    path = write(tmp_path / "a.json")
    run_file(path, tmp_path / "a", lambda text: None)
    result = min((tmp_path / "a" / "runs").iterdir())
    content = json.loads(result.read_text())
    columns = content["evaluations"]
    for text in ("", "[]", "[" * 100_000, '{"a": 1, "a": 2}', '{"evaluations": [{}]}', *(
            json.dumps(content | more) for more in (
            {"evaluations": 3}, {"evaluations": {}}, {"evaluations": [columns]}, {"evaluations": "text"},
            {"evaluations": columns | {"error": columns["error"][1:]}}, {"evaluations": columns | {"error": 3}},
            {"evaluations": columns | {"error": ["a"] * len(columns["k"])}},
            {"evaluations": {name: columns[name] for name in columns if name != "loss"}},
            {"environment": 3}, {"data_sha256": None}))):
        result.write_text(text)
        assert cli.main(["experiment", str(path)]) == 1
        assert f"{result} is damaged: " in (error := capsys.readouterr().err)
        assert error.endswith("; delete it, and the run is made again\n")
    result.unlink()
    assert cli.main(["experiment", str(path)]) == 0


def test_a_full_disk_leaves_no_half_result(tmp_path, monkeypatch, capsys, undrawn):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = write(tmp_path / "a.json")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert cli.main(["experiment", str(path)]) == 1
    error = capsys.readouterr().err
    assert "cannot write " in error
    assert "(No space left on device)" in error
    assert error.count("\n") == 1
    assert list((tmp_path / "a" / "runs").iterdir()) == []
    assert cli.main(["experiment", str(path)]) == 0


def test_an_error_of_none_has_a_score():
    def history(errors):
        return training.History(None, (), [], [training.Evaluation(k, k, e, e, e, e, e, e)
                                               for k, e in enumerate(errors)])
    assert comparison.score(history([1, 0.5, 0.0])) == (math.log(0.5) + math.log(1e-6)) / 2
    assert comparison.score(history([1, 0.5, 0.0])) < comparison.score(history([1, 0.5, 1e-3]))
    assert math.isnan(comparison.score(history([1, 0.5, math.nan])))


# Refusals


@pytest.mark.parametrize(("content", "word"), [
    ("{", "is not JSON: "), ("[]", "must hold an object, got list"),
    ('{"title": "a", "title": "b"}', "'title' is given twice"), ("[" * 100_000, "is nested too deeply"),
    (changed(methods=3), 'must hold an object with "methods"'),
    (changed(methods={}), "methods, seeds and levels must not be empty"),
    (changed(seeds=[]), "methods, seeds and levels must not be empty"),
    (changed(levels=[]), "methods, seeds and levels must not be empty"),
    (changed(title=...), "title is missing"), (changed(title=5), "title must be text, got 5"),
    (changed(levels=...), "levels is missing"), (changed(error=5), "error must be text, got 5"),
    (changed(colour="red"), r"colour is not known \(there are error, levels, methods, .*, data, net, "),
    (changed(base={}), "base is not known"), (changed(batch="full"), "batch is not known"),
    (changed(seeds=3), "seeds must be a list of numbers, got 3"),
    (changed(levels=3), "levels must be a list of numbers, got 3"),
    (changed(tuning_seeds="0"), "tuning_seeds must be a list of numbers, got '0'"),
    (changed(seeds=[0.5]), "seeds and tuning_seeds must be an integer of at least 0, got 0.5"),
    (changed(levels=["low"]), "levels must be a number, got 'low'"),
    (changed(levels=[1, 2]), r"levels must descend, got \[1, 2\]"),
    (changed(tuning_seeds=[1, 2]), r"seeds and tuning_seeds must all differ, .*; got \[1\] more than once"),
    (changed(seeds=[0, 0, 1]), r"must all differ, .*; got \[0\] more than once"),
    (changed(tuning_seeds=[100, 100]), r"must all differ, .*; got \[100\] more than once"),
    (changed(levels=[3, 3]), r"levels must descend, got \[3, 3\]"),
    (json.dumps(CONTENT).replace("SGD, all", "K-FAC, m = 40"), "'K-FAC, m = 40' is given twice"),
    (changed(tuning_seeds=[]), "method 'K-FAC, m = 40': its grid needs tuning_seeds, got none"),
    (changed(net="small"), "net must be one of .*; got 'small'"), (changed(net=5), "net must be text, got 5"),
    (changed(data="iris"), "data must be digits, curves or mnist:FOLDER, got 'iris'"),
    (changed(data=5), "data must be text, got 5"),
    (changed(dtype="int8"), "dtype must be one of float32, float64; got 'int8'"),
    (changed(methods={"K": 5}), "method 'K': must be an object, got 5"),
    (method(optimizer=...), "method 'K': optimizer is missing"),
    (method(batch=..., speed=1), r"method 'K': batch is missing; speed is not known \(there are optimizer, batch, "),
    (method(optimizer="lbfgs"), "method 'K': optimizer must be one of .*; got 'lbfgs'"),
    (method(batch=40.0), r"method 'K': batch must be text, got 40\.0"),
    (method(batch=True), "method 'K': batch must be text, got True"),
    (method(batch="some"), "method 'K': batch must be a number, full, growing"),
    (method(iterations=0), "method 'K': iterations must be an integer of at least 1, got 0"),
    (method(settings=5), "method 'K': settings must be names and values, got 5"),
    (method(settings={"T9": 1}), "method 'K': a setting of kfac must be one of .*; got 'T9'"),
    (method(grid=[1]), r"method 'K': grid must be names, each with a list of values, got \[1\]"),
    (method(grid={"T3": 5}), "method 'K': grid must give a list of values for T3, got 5"),
    (method(grid={"T3": []}), r"method 'K': grid must give a list of values for T3, got \[\]"),
    (method(grid={"T3": [5, 0]}), "method 'K': T3 must be an integer of at least 1, got 0"),
    (changed(methods={str(k): CONTENT["methods"]["SGD, all"] for k in range(15)}),
     "methods must be at most 14, as many"),
    (changed(net="64-3-8"), "method 'K-FAC, m = 40': net must have 64 outputs for the inputs of digits"),
    (method(batch=0), "method 'K': batch must be at least 1 example, got 0"),
    (method(batch="121"), "method 'K': batch must be at most the 120 examples of digits, got 121")])
def test_a_bad_file_is_one_clear_line_that_names_file_and_field(tmp_path, capsys, monkeypatch, content, word):
    made = counted(monkeypatch)
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(ValueError, match=word):
        run_file(path, tmp_path / "out")
    assert cli.main(["experiment", str(path)]) == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith(f"kfac-ref: {path}")
    assert error.count("\n") == 1
    assert made == []


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert cli.main(["experiment", str(tmp_path / "absent.json")]) == 1
    assert capsys.readouterr().err == f"kfac-ref: {tmp_path / 'absent.json'} is missing\n"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"bytes\.json is not JSON"):
        comparison.read(tmp_path / "bytes.json")


def test_an_out_that_cannot_be_written_is_told_before_anything_is_run(tmp_path, capsys, monkeypatch):
    made = counted(monkeypatch)
    path = write(tmp_path / "a.json")
    assert cli.main(["experiment", str(path), "--out", str(path)]) == 1
    assert capsys.readouterr().err == f"kfac-ref: {path} cannot be written: File exists\n"
    assert made == []


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path, capsys, monkeypatch):
    made = counted(monkeypatch)
    path, out = write(tmp_path / "a.json"), tmp_path / "a"
    out.mkdir()
    with script.locked(out):
        assert cli.main(["experiment", str(path)]) == 1
    assert capsys.readouterr() == ("", f"kfac-ref: {path}: {out} is in use by another process\n")
    assert made == []


@pytest.mark.parametrize("name", ["results.json", "comparison.md", "comparison.png", "runs"])
def test_files_that_no_comparison_wrote_are_not_replaced(tmp_path, capsys, monkeypatch, undrawn, name):
    made = counted(monkeypatch)
    path, out = write(tmp_path / "a.json"), tmp_path / "a"
    out.mkdir()
    if name == "runs":
        (tmp_path / "elsewhere").mkdir()
        (out / name).symlink_to(tmp_path / "elsewhere")
    else:
        (out / name).write_text("mine")
    assert cli.main(["experiment", str(path)]) == 1
    printed, error = capsys.readouterr()
    assert re.fullmatch(rf"kfac-ref: {path}: {out / name} (exists|is a symbolic link)[^\n]*\n", error)
    assert (printed, made, [file.name for file in out.iterdir()]) == ("", [], [name])
    if name == "runs":
        assert list((tmp_path / "elsewhere").iterdir()) == []
    else:
        assert (out / name).read_text() == "mine"
        assert cli.main(["experiment", str(path), "--force"]) == cli.main(["experiment", str(path)]) == 0
        assert (out / name).read_bytes() != b"mine"


def test_as_many_methods_as_colours_can_be_drawn():
    methods = {str(k): Method("sgd", "full", 3, {}) for k in range(len(plotting.LOOKS))}
    found = Comparison("Seven", Settings(net="64-3-64"), methods, (1.0,), seeds=(0,))
    evaluations = [training.Evaluation(k, k, 1.0, 1 / k, 1.0, 1.0, 1.0, 1.0) for k in (1, 2, 3)]
    tables.figure({name: [training.History(None, (), evaluations=evaluations)] for name in methods},
                  found.levels, found.title, found.error)
