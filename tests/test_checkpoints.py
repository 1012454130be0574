"""Checkpoints: what is read goes on to the same bits, and what is not whole, or not of this run, is refused by name."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref import approximations, checkpoints, training
from kfac_ref.approximations import BLOCK_TRIDIAGONAL, Approximation
from kfac_ref.checkpoints import NAME, Checkpoint, RefusedError
from kfac_ref.environment import environment
from kfac_ref.factors import second_moments
from kfac_ref.optimizers import KFAC, SGD, Adam, NaturalGradient
from kfac_ref.optimizers.sgd import nesterov_schedule
from tests.problems import direction, problem

from .test_training import bits, decisions


class Identity(kr.curvature.Curvature):
    """A structure of a user's own, that keeps neither factors nor a point."""

    shapes = dtype = None

    def __init__(self, factors, damping=0.0):
        self.shapes, self.dtype = factors.shapes, factors.A[0].dtype

    def product(self, V):
        return list(V)

    def solve(self, V):
        return list(V)


SETTINGS = {"data": "drawn", "seed": 3, "settings": {"T1": 2}, "batch": "full"}
# Every multiple of T1, T2 and T3, and k = 1, 2, 3, is among the ten steps.
PERIODS = {"T1": 2, "T2": 6, "T3": 3, "lambda_0": 0.1, "tau1": 1 / 2, "tau2": 1 / 2}
OPTIMIZERS = {
    "kfac": lambda model: KFAC(model, **PERIODS),
    "kfac, all defaults": KFAC,
    "kfac without momentum": lambda model: KFAC(model, momentum=False, **PERIODS),
    "kfac, tridiagonal": lambda model: KFAC(model, BLOCK_TRIDIAGONAL, **PERIODS),
    "kfac, exact expectation": lambda model: KFAC(model, expectation=kr.exact, **PERIODS),
    "kfac, EKFAC": lambda model: KFAC(model, approximations.EKFAC, **PERIODS),
    "kfac, KFRA at the labels": lambda model: KFAC(model, approximations.KFRA, kr.empirical(), **PERIODS),
    "kfac, a structure of a user's own": lambda model: KFAC(model, Approximation(second_moments, Identity), **PERIODS),
    "natural-gradient": lambda model: NaturalGradient(model, lambda_0=0.1),
    "natural-gradient that keeps": lambda model: NaturalGradient(model, approximations.EXACT, **PERIODS),
    "sgd": lambda model: SGD(model, 0.1, nesterov_schedule(0.9, 3)),
    "adam": lambda model: Adam(model, 0.01),
}
N, STEPS = 24, 10


def run(opt, p, schedule, iterations=STEPS, **more):
    return training.train(opt, p.at.weights, p.at.x, p.y, iterations, schedule, seed=3, **more)


def save(folder, opt, history, settings=SETTINGS):
    """Write a history's state as a checkpoint and return its path."""
    folder.mkdir(exist_ok=True)
    checkpoints.write(folder, Checkpoint(history.state, history.averaged, history.seconds, environment()), opt,
                      settings)
    return folder / NAME


def everything(value):
    """Return all that a state holds, to the last bit and in its layout."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.flags.f_contiguous, value.tobytes()
    if hasattr(value, "__dataclass_fields__"):
        return type(value).__name__, [everything(getattr(value, f.name)) for f in fields(value)]
    if isinstance(value, (tuple, list)):
        return [everything(item) for item in value]
    if isinstance(value, dict):
        return {key: everything(item) for key, item in value.items()}
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_resumed_at_every_step_it_goes_on_to_the_same_bits(tmp_path, make, dtype):
    p = problem(sizes=(4, 5, 4, 3), N=N, weight_decay=1e-2, dtype=dtype)
    schedule = training.growing(N, 9, 8)

    def save_each(history):
        save(tmp_path / str(history.state.k), make(p.model), history)
        states.append(history.state)

    states = []
    whole = run(make(p.model), p, schedule, after_step=save_each)
    for k, state in enumerate(states[:-1], start=1):
        opt = make(p.model)
        found = checkpoints.read(tmp_path / str(k) / NAME, opt, p.at.weights, SETTINGS)
        assert found.state.k == k
        assert everything(found.state) == everything(state)
        history = training.History(found.state, found.averaged, seconds=found.seconds)
        resumed = run(opt, p, schedule, resume=history)
        assert resumed.state.k == STEPS
        assert everything(resumed.state) == everything(whole.state)
        assert bits(resumed.averaged) == bits(whole.averaged)
        assert decisions(resumed.records) == decisions(whole.records[k:])
    assert whole.state.weights[0].dtype == dtype


def test_the_test_of_resuming_meets_every_kind_of_step():
    p = problem(sizes=(4, 5, 4, 3), N=N, weight_decay=1e-2)
    records = run(KFAC(p.model, **PERIODS), p, training.growing(N, 9, 8)).records
    assert [r.refreshed for r in records] == [k <= 3 or k % 3 == 0 for k in range(1, 11)]
    assert [len(r.gammas) > 1 for r in records] == [k % 6 == 0 for k in range(1, 11)]
    # A step is judged every T1 = 2 steps, before the next one.
    assert [math.isfinite(r.rho) for r in records] == [k in (3, 5, 7, 9) for k in range(1, 11)]
    assert len({r.lambda_ for r in records}) > 2
    assert {9, N} < {r.batch for r in records}
    # A state that forgets its kept curvature, its momentum or its lambda would go elsewhere.
    kept = run(KFAC(p.model, **PERIODS), p, training.growing(N, 9, 8), 4)
    assert kept.state.refresh.moments is not kept.state.average.moments
    assert kept.state.delta_0 is not None


def test_the_state_of_an_optimizer_is_arrays_and_numbers():
    p = problem(sizes=(4, 5, 4, 3), N=N)
    for make in OPTIMIZERS.values():
        checkpoints._pack(checkpoints._unpack(*packed(run(make(p.model), p, None, 4).state)), [])


def packed(state):
    """Return the description of the fields of a state, and its arrays by name."""
    arrays = []
    described = checkpoints._pack({f.name: getattr(state, f.name) for f in fields(state)}, arrays)
    return json.loads(json.dumps(described)), {f"a{i}": a for i, a in enumerate(arrays)}


def test_what_a_state_holds_twice_is_stored_once():
    p = problem(N=N)
    state = run(KFAC(p.model, tau1=1.0), p, None, 3).state             # new inverses of the present average
    _, arrays = packed(state)
    # Weights before and after, delta, and A and G of two layers.
    assert len(arrays) == 2 + 2 + 2 + 4


# Nothing but plain data


values = st.deferred(lambda: st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=4)
                     | st.tuples(values, values) | st.dictionaries(st.text(max_size=3), values, max_size=2)
                     | st.dictionaries(st.tuples(st.integers(0, 9), st.integers(0, 9)), values, max_size=2)
                     | st.builds(lambda m, n, dtype, order: np.asarray(
                         np.random.default_rng((m, n)).standard_normal((m, n)), dtype, order=order),
                         st.integers(0, 3), st.integers(0, 3), st.sampled_from(["f4", "f8"]), st.sampled_from("CF")))


@given(values)
def test_what_is_packed_is_unpacked(value):
    arrays = []
    described = json.loads(json.dumps(checkpoints._pack(value, arrays)))
    named = {f"a{i}": a for i, a in enumerate(arrays)}
    assert everything(checkpoints._unpack(described, named)) == everything(value)


def test_an_array_that_stands_twice_is_stored_once():
    a, arrays = np.ones((2, 3)), []
    described = checkpoints._pack((a, a.copy(), {"again": a}), arrays)
    assert len(arrays) == 2
    first, _, again = checkpoints._unpack(described, {"a0": arrays[0], "a1": arrays[1]})
    assert first is again["again"]


@pytest.mark.parametrize("value", [1j, np.float32(1), {1: 2}, {"a": {3}}, np.random.default_rng(0)])
def test_what_is_no_plain_data_is_not_stored(value):
    with pytest.raises(ValueError, match=r"the state holds .*, which a checkpoint cannot store"):
        checkpoints._pack([value], [])


def test_digests_depend_on_content_and_not_on_order():
    assert checkpoints.digest({"a": 1, "b": {"c": 2}}) == checkpoints.digest({"b": {"c": 2}, "a": 1})
    others = [{}, {"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": None}, {"a": 1, "b": None}]
    assert len({checkpoints.digest(settings) for settings in others}) == len(others)


# Whole or refused


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return a checkpoint of a tiny network, the optimizer and its start."""
    p = problem("gaussian", (2, 2, 1), N=8)
    opt = KFAC(p.model, tau1=1.0)
    folder = tmp_path_factory.mktemp("tiny")
    return SimpleNamespace(path=save(folder, opt, run(opt, p, None, 5)), opt=opt, p=p,
                           read=lambda path: checkpoints.read(path, opt, p.at.weights, SETTINGS))


@pytest.mark.slow
def test_cut_at_any_byte_it_is_refused(tiny, tmp_path):
    whole = tiny.path.read_bytes()
    path = tmp_path / "cut.npz"
    path.write_bytes(whole)
    assert tiny.read(path).state.k == 5
    for size in range(len(whole) - 1, -1, -1):
        os.truncate(path, size)
        with pytest.raises(RefusedError, match="is damaged") as caught:
            tiny.read(path)
        assert str(path) in str(caught.value)


@pytest.mark.slow
def test_with_any_byte_changed_it_is_refused_or_says_the_same(tiny, tmp_path):
    whole, rng = tiny.path.read_bytes(), np.random.default_rng()
    same, refused = everything(tiny.read(tiny.path)), 0
    for place in rng.choice(len(whole), 800, replace=False):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        (path := tmp_path / f"{place}.npz").write_bytes(changed)
        try:
            found = everything(tiny.read(path))
        except RefusedError:
            refused += 1
        else:
            assert found == same, place
    assert refused > 400


def test_the_bytes_of_heads_may_say_anything(tiny, tmp_path):
    # What zipfile and NumPy make of them: an encrypted entry, an unknown compression, a NumPy head that does not end.
    whole = tiny.path.read_bytes()
    entry, numpy_head = whole.rindex(b"PK\x01\x02"), whole.index(b"{'descr'")
    for place, value in ((entry + 8, 1), (entry + 10, 99), (entry + 10, 14), (numpy_head, ord("(")), (0, 0),
                         (whole.index(b"<U") + 1, ord("O"))):
        changed = bytearray(whole)
        changed[place] = value
        (path := tmp_path / f"{place}-{value}.npz").write_bytes(changed)
        with pytest.raises(RefusedError, match="is damaged"):
            tiny.read(path)


def test_a_file_that_is_no_checkpoint_is_refused(tiny, tmp_path):
    with pytest.raises(RefusedError, match=r"absent\.npz is missing"):
        tiny.read(tmp_path / "absent.npz")
    np.savez(path := tmp_path / "other.npz", something=np.ones(3))
    with pytest.raises(RefusedError, match=r"is damaged: .*header"):
        tiny.read(path)
    np.save(path := tmp_path / "array.npy", np.ones(3))
    with pytest.raises(RefusedError, match="is damaged"):
        tiny.read(path)
    deep = "[" * 100_000
    for k, header in enumerate(("[1]", deep, f'{{"format": {deep}', '{"format": 2, "format": 2}', '{"format": NaN}')):
        np.savez(path := tmp_path / f"{k}.npz", header=np.array(header))
        with pytest.raises(RefusedError, match=r"is damaged: its header (must hold an object|is not JSON)"):
            tiny.read(path)
    with pytest.raises(RefusedError, match="is damaged"):
        tiny.read(tmp_path)


def rewritten(tiny, path, change, signed=True):
    """Write the tiny checkpoint with another header, and with its hash; the file as such is whole."""
    with np.load(tiny.path) as file:
        content = dict(file)
    header = json.loads(content.pop("header").item())
    change(header)
    if signed:
        del header["sha256"]
        header["sha256"] = checkpoints._sum(header, list(content.values()))
    with path.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **content)
    return path


@pytest.mark.parametrize(("change", "word"), [
    (lambda h: h.update(format=1), "of another format: 1, this run has 2"),
    (lambda h: h["environment"].update(kfac_ref="0.0.1"), "of another version of kfac_ref: '0.0.1', this"),
    (lambda h: h.update(optimizer="SGD"), "of another optimizer: 'SGD', this run has 'KFAC'"),
    (lambda h: h["shapes"].append([1, 2]), r"of another network \(shapes of its weights\): \[\[2, 3\], \[1, 3\], \[1"),
    (lambda h: h["settings"].update(seed=4), "of another setting seed: 4, this run has 3"),
    (lambda h: h["settings"].pop("batch"), "of another setting batch: None, this run has 'full'")])
def test_what_is_of_another_run_is_refused_by_name(tiny, tmp_path, change, word):
    assert tiny.read(rewritten(tiny, tmp_path / "same.npz", lambda h: None)).state.k == 5
    path = rewritten(tiny, tmp_path / "other.npz", change)
    with pytest.raises(RefusedError, match=word) as caught:
        tiny.read(path)
    assert str(caught.value).startswith(f"{path} is ")


def places(value, path=()):
    """Yield where something stands in plain data."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.slow
def test_whatever_is_changed_in_the_header_is_refused(tiny, tmp_path):
    with np.load(tiny.path) as file:
        header = json.loads(file["header"].item())
    found = list(places(header))
    assert len(found) > 50

    def changed(place, value):
        def change(content):
            for key in place[:-1]:
                content = content[key]
            content[place[-1]] = value
        return change

    rng, path = np.random.default_rng(0), tmp_path / "other.npz"
    for place in [found[k] for k in rng.permutation(len(found))[:60]]:
        for value in ([], "text", -1.5, {"array": "a0"}):       # values that it never holds
            with pytest.raises(RefusedError, match=r"other\.npz is (damaged|of another)"):
                tiny.read(rewritten(tiny, path, changed(place, value), signed=False))


@pytest.mark.parametrize("change", [lambda a: a.update(a0=a["a0"] + 1), lambda a: a.update(a0=a["a0"].astype("f4")),
                                    lambda a: a.update(a0=a["a0"].T), lambda a: a.update(a0=a["a1"], a1=a["a0"]),
                                    lambda a: a.pop("a1"), lambda a: a.update(a99=a["a0"]),
                                    lambda a: a.update(a0=np.array("text"))])
def test_whatever_is_changed_in_the_arrays_is_refused(tiny, tmp_path, change):
    with np.load(tiny.path) as file:
        content = dict(file)
    change(content)
    np.savez(path := tmp_path / "other.npz", **content)
    with pytest.raises(RefusedError, match="is damaged: "):
        tiny.read(path)


def test_another_optimizer_or_network_refuses_it(tiny):
    p = problem("gaussian", (2, 3, 1), N=8)
    with pytest.raises(RefusedError, match=r"another network .*: \[\[2, 3\], \[1, 3\]\], this .* \[\[3, 3\]"):
        checkpoints.read(tiny.path, KFAC(p.model), p.at.weights, SETTINGS)
    with pytest.raises(RefusedError, match="another optimizer: 'KFAC', this run has 'Adam'"):
        checkpoints.read(tiny.path, Adam(tiny.p.model), tiny.p.at.weights, SETTINGS)
    with pytest.raises(RefusedError, match="another setting data: 'drawn', this run has 'other'"):
        checkpoints.read(tiny.path, tiny.opt, tiny.p.at.weights, SETTINGS | {"data": "other"})


def test_what_differs_from_the_environment_then():
    now = environment()
    assert checkpoints.differences(now) == []
    assert checkpoints.differences({**now, "numpy": "1.0"}) == [f"numpy {now['numpy']}, was 1.0"]
    assert checkpoints.differences({name: now[name] for name in now if name != "blas"}) == \
        [f"blas {now['blas']}, was None"]
    assert {"kfac_ref", "python", "numpy", "scipy", "blas", "machine", "cores", "threads", "kernel"} <= set(now)


# Writing


def test_only_the_last_one_is_there(tmp_path):
    p = problem(N=N)
    opt = SGD(p.model, 0.1)
    for k in (1, 2, 3):
        path = save(tmp_path, opt, run(opt, p, None, k))
    assert list(tmp_path.iterdir()) == [path]
    found = checkpoints.read(path, opt, p.at.weights, SETTINGS)
    assert found.state.k == 3
    assert found.environment == environment()
    assert found.seconds > 0


def full(*arguments, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_written(file, **content):
    file.write(b"PK\x03\x04 half of it")
    full()


def interrupted(*arguments, **more):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("owner", "name", "broken", "error"), [
    (np, "savez", half_written, OSError), (os, "fsync", full, OSError), (Path, "replace", full, OSError),
    (np, "savez", interrupted, KeyboardInterrupt), (Path, "replace", interrupted, KeyboardInterrupt)])
def test_where_it_cannot_be_written_the_last_one_is_as_it_was(tmp_path, monkeypatch, owner, name, broken, error):
    p = problem(N=N)
    opt = SGD(p.model, 0.1)
    path = save(tmp_path, opt, run(opt, p, None, 1))
    before = path.read_bytes()
    later = run(opt, p, None, 2)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        with pytest.raises(error):
            save(tmp_path, opt, later)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_at_every_call_to_the_disk_a_whole_checkpoint_is_there(tmp_path, monkeypatch):
    # What a machine leaves that stops just before such a call.
    p = problem(N=N)
    opt = SGD(p.model, 0.1)
    for k in (1, 2):
        save(tmp_path, opt, run(opt, p, None, k))
    seen = []

    def look(call):
        def looked(*arguments):
            seen.append(checkpoints.read(tmp_path / NAME, opt, p.at.weights, SETTINGS).state.k)
            return call(*arguments)
        return looked

    monkeypatch.setattr(os, "fsync", look(os.fsync))
    monkeypatch.setattr(Path, "replace", look(Path.replace))
    save(tmp_path, opt, run(opt, p, None, 3))
    # The file is forced to the disk, takes the place of the last one, and the folder is forced.
    assert seen == [2, 2, 3]


def test_weights_of_the_start_matter_by_their_shapes_alone(tiny):
    other = checkpoints.read(tiny.path, tiny.opt, direction(tiny.p), SETTINGS)
    assert everything(other) == everything(tiny.read(tiny.path))


@dataclass(frozen=True)
class Odd:
    weights: tuple
    k: int
    handle: object


def test_a_state_that_holds_something_odd_is_refused(tmp_path, tiny):
    history = training.History(Odd((), 1, object()), ())
    with pytest.raises(ValueError, match="the state holds object, which a checkpoint cannot store"):
        save(tmp_path, tiny.opt, history)
    assert list(tmp_path.iterdir()) == []
