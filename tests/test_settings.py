"""The settings of a run: the paper's networks by name, what each word makes, and what is refused."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields, replace
from itertools import islice

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import kfac_ref as kr
from kfac_ref import approximations, datasets, training
from kfac_ref.datasets import Dataset
from kfac_ref.experiments import settings as module
from kfac_ref.experiments.settings import NETS, OPTIMIZERS, Settings
from kfac_ref.optimizers import KFAC, SGD, Adam, NaturalGradient
from kfac_ref.optimizers.sgd import nesterov_schedule


@pytest.fixture(scope="module")
def digits():
    return datasets.digits()


# Networks: the widths of the paper (sec. 13 and 3), written out


@pytest.mark.parametrize(("name", "sizes", "likelihood"), [
    ("mnist", (784, 1000, 500, 250, 30, 250, 500, 1000, 784), kr.Bernoulli),
    ("curves", (784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784), kr.Bernoulli),
    ("faces", (625, 2000, 1000, 500, 30, 500, 1000, 2000, 625), kr.Gaussian),
    ("digits", (64, 32, 16, 8, 16, 32, 64), kr.Bernoulli),
    ("digits-classifier", (64, 20, 20, 20, 10), kr.Categorical),
    ("tanh-classifier", (256, 20, 20, 20, 20, 20, 10), kr.Categorical)])
def test_networks_by_name(name, sizes, likelihood):
    model = Settings(net=name).model()
    assert model.network.sizes == sizes
    assert isinstance(model.likelihood, likelihood)
    if likelihood is kr.Categorical:
        assert set(model.network.hidden) == {"tanh"}
    else:
        # The code layer, in the middle, is linear; all others are logistic.
        middle = len(sizes) // 2 - 1
        assert [i for i, unit in enumerate(model.network.hidden) if unit == "identity"] == [middle]
        assert set(model.network.hidden) == {"identity", "logistic"}


def test_every_network_by_name_is_looked_at():
    looked_at = {mark.args[1][i][0] for mark in test_networks_by_name.pytestmark for i in range(len(mark.args[1]))}
    assert looked_at == set(NETS)


def test_the_number_of_parameters_of_the_papers_networks():
    parameters = {name: Settings(net=name).model().network.parameters for name in NETS}
    assert parameters["mnist"] == 785 * 1000 + 1001 * 500 + 501 * 250 + 251 * 30 + 31 * 250 + 251 * 500 + 501 * 1000 \
        + 1001 * 784


@given(st.lists(st.integers(1, 30), min_size=2, max_size=6))
def test_widths_make_a_network(sizes):
    model = Settings(net="-".join(map(str, sizes))).model()
    assert model.network.sizes == tuple(sizes)
    assert isinstance(model.likelihood, kr.Categorical if sizes[-1] == 10 else kr.Bernoulli)
    assert set(model.network.hidden) <= {"tanh"}


def test_a_network_is_that_of_the_data_unless_told():
    for data in ("digits", "curves"):
        assert Settings(data=data).model().network.sizes == NETS[data].sizes
    assert Settings(data="mnist:folder").model().network.sizes == NETS["mnist"].sizes


def test_units_likelihood_and_weight_decay_are_as_told():
    model = Settings(net="64-5-4-64", hidden="relu,logistic", likelihood="gaussian", weight_decay=0.5).model()
    assert model.network.hidden == ("relu", "logistic")
    assert isinstance(model.likelihood, kr.Gaussian)
    assert model.weight_decay == 0.5
    assert Settings(net="64-5-4-64", hidden="relu").model().network.hidden == ("relu", "relu")
    assert Settings(net="digits", hidden="tanh").model().network.hidden == ("tanh",) * 5


# Optimizers


def test_optimizers_by_name():
    made = {name: Settings(optimizer=name, net="64-3-64").make_optimizer(Settings(net="64-3-64").model())
            for name in OPTIMIZERS}
    assert {name: type(opt) for name, opt in made.items()} == {
        "kfac": KFAC, "natural-gradient": NaturalGradient, "sgd": SGD, "adam": Adam}
    assert (made["kfac"].approximation, made["kfac"].expectation) == (approximations.BLOCK_DIAGONAL, kr.one_draw)
    schedule = nesterov_schedule(0.99, 250)
    assert [made["sgd"].momentum(t) for t in range(0, 3000, 100)] == [schedule(t) for t in range(0, 3000, 100)]


@pytest.mark.parametrize(("name", "kind"), [("kfac", KFAC), ("adam", Adam), ("natural-gradient", NaturalGradient)])
def test_settings_are_the_arguments_of_the_optimizer_and_reach_it(name, kind):
    known = module.optimizer_settings(name)
    defaults = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
    by_name = {"approximation", "expectation"}
    assert {n: value for n, value in known.items() if n not in by_name} == \
        {n: value for n, value in defaults.items() if n not in {"model", *by_name}}
    assert by_name & set(known) == (by_name if name == "kfac" else set())
    for setting, value in known.items():
        if setting in by_name:
            continue
        other = {"beta1": 0.5, "beta2": 0.5, "T2": 40, "momentum": False, "omega1": 0.5, "omega2": 0.5,
                 "gamma_min": 0.25, "undo": None, "judged_on": "same batch", "examples": 7}
        other = other[setting] if setting in other else value and value / 2
        other = 10 if setting in ("T1", "T3") else other
        chosen = Settings(optimizer=name, net="64-3-64", settings={setting: other})
        assert getattr(chosen.make_optimizer(chosen.model()), setting) == other != value


@pytest.mark.parametrize("name", approximations.TABLE)
@pytest.mark.parametrize("expectation", module.EXPECTATIONS)
def test_every_approximation_and_expectation_by_name(name, expectation):
    chosen = Settings(net="64-3-64", settings={"approximation": name, "expectation": expectation})
    opt = chosen.make_optimizer(chosen.model())
    assert opt.approximation is approximations.TABLE[name]
    assert opt.expectation is module.EXPECTATIONS[expectation]
    assert Settings(**json.loads(json.dumps(chosen.plain()))) == chosen


def test_the_expectations_by_name():
    one_draw, exact, labels = (module.EXPECTATIONS[name] for name in ("one-draw", "exact", "empirical"))
    assert (one_draw, exact) == (kr.one_draw, kr.exact)
    assert isinstance(labels, kr.expectations.Empirical)
    assert labels.y is None
    assert len(module.EXPECTATIONS) == 3


def test_settings_of_sgd():
    assert module.optimizer_settings("sgd") == {"learning_rate": 0.05, "mu_max": 0.99, "period": 250}
    chosen = Settings(optimizer="sgd", net="64-3-64", settings={"learning_rate": 2.0, "mu_max": 0.6, "period": 7})
    opt = chosen.make_optimizer(chosen.model())
    assert opt.learning_rate == 2
    assert [opt.momentum(t) for t in range(20)] == [nesterov_schedule(0.6, 7)(t) for t in range(20)]


# Batches


@pytest.mark.parametrize(("batch", "expected"), [
    ("full", training.fixed(1500)), ("7", training.fixed(7)), ("growing", training.growing(1500)),
    ("growing:30:50", training.growing(1500, 30, 50))])
def test_batches_in_words(digits, batch, expected):
    schedule = Settings(batch=batch, net="64-3-64").task(digits).schedule
    assert [schedule(k) for k in range(1, 600)] == [expected(k) for k in range(1, 600)]


# What training takes


def test_a_task_is_what_its_settings_say(digits):
    task = Settings(net="64-3-64", seed=7, init="glorot").task(digits)
    assert task.x is task.y is digits.x
    assert task.test == (digits.x_test, digits.x_test)
    for W, expected in zip(task.weights, task.model.init(np.random.default_rng(7), "glorot"), strict=True):
        np.testing.assert_array_equal(W, expected)
    labelled = Settings(net="64-3-10").task(digits)
    assert labelled.y is digits.labels
    assert labelled.test[1] is digits.labels_test
    other = Settings(net="64-3-64", seed=8, init="glorot").task(digits)
    assert (other.weights[0] != task.weights[0]).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_precision_is_that_of_data_weights_and_steps(dtype):
    task = Settings(net="64-3-64", dtype=dtype, batch="20").task()
    assert {a.dtype for a in (task.x, task.test[0], *task.weights)} == {np.dtype(dtype)}
    history = training.train(task.optimizer, task.weights, task.x, task.y, 2, task.schedule)
    assert {W.dtype for W in history.state.weights} == {np.dtype(dtype)}


def test_data_by_name(monkeypatch, tmp_path, digits):
    np.testing.assert_array_equal(Settings().dataset().x, digits.x)
    monkeypatch.setattr(module, "CURVES", (5, 3))
    curves = Settings(data="curves").dataset()
    np.testing.assert_array_equal(np.vstack([curves.x, curves.x_test]), datasets.curves(8))
    assert (len(curves.x), len(curves.x_test), len(curves.labels)) == (5, 3, 0)
    asked = []
    monkeypatch.setattr(datasets, "mnist", lambda *arguments: asked.append(arguments))
    Settings(data=f"mnist:{tmp_path}", side=14, dtype="float32").dataset()
    assert asked == [(tmp_path, "float32", 14)]


# Plain data


EXAMPLES = [{}, {"optimizer": "sgd", "settings": {"learning_rate": 0.25}, "batch": "growing", "dtype": "float32"},
            {"net": "64-3-10", "hidden": "relu", "likelihood": "categorical", "weight_decay": 0.0, "seed": 4}]


@pytest.mark.parametrize("given_", EXAMPLES)
def test_settings_survive_a_file(given_):
    made = Settings(**given_)
    assert Settings(**json.loads(json.dumps(made.plain()))) == made
    assert made.plain() == {f.name: getattr(made, f.name) for f in fields(made)}


def test_the_same_settings_make_the_same_bits_and_another_seed_does_not(digits):
    def weights(seed):
        task = Settings(net="64-3-64", batch="30", seed=seed).task(digits)
        rows = list(islice(training.batches(1500, task.schedule, seed), 2))
        state = task.optimizer.init(task.weights, seed)
        for chosen in rows:
            state, _ = task.optimizer.step(state, task.x[chosen], task.y[chosen])
        return [W.tobytes() for W in state.weights]

    assert weights(1) == weights(1) != weights(2)


# Refusals


@pytest.mark.parametrize(("given_", "word"), [
    ({"data": "iris"}, "data must be digits, curves or mnist:FOLDER, got 'iris'"),
    ({"data": "digits:"}, "data must be digits, curves or mnist:FOLDER, got 'digits:'"),
    ({"data": "curves:folder"}, "data must be digits, curves or mnist:FOLDER, got 'curves:folder'"),
    ({"data": "mnist"}, "data must be digits, curves or mnist:FOLDER, got 'mnist'"),
    ({"data": "mnist:"}, "data must be digits, curves or mnist:FOLDER, got 'mnist:'"),
    ({"data": 5}, "data must be text, got 5"),
    ({"net": ["64", "3"]}, r"net must be text, got \['64', '3'\]"),
    ({"net": "64"}, r"net must be one of mnist, curves, .*, or widths such as 64-32-10; got '64'"),
    ({"net": "64-x-10"}, "or widths such as 64-32-10; got '64-x-10'"),
    ({"net": "64--10"}, "or widths such as 64-32-10; got '64--10'"),
    ({"net": "64-0-10"}, "sizes"),
    ({"hidden": 3}, "hidden must be text, got 3"),
    ({"hidden": "swish"}, "swish"),
    ({"net": "64-3-64", "hidden": "tanh,tanh"}, "hidden"),
    ({"likelihood": "poisson"}, "likelihood must be one of bernoulli, categorical, gaussian; got 'poisson'"),
    ({"optimizer": "lbfgs"}, "optimizer must be one of adam, kfac, natural-gradient, sgd; got"),
    ({"optimizer": None}, "optimizer must be text, got None"),
    ({"settings": [1]}, r"settings must be names and values, got \[1\]"),
    ({"settings": {"T9": 1}}, "a setting of kfac must be one of T1, T2, .*; got 'T9'"),
    ({"settings": {"structure": 1}}, "a setting of kfac must be one of .*; got 'structure'"),
    ({"settings": {"approximation": "tridiagonal"}},
     "approximation must be one of block-diagonal, block-tridiagonal, "),
    ({"settings": {"expectation": "sampled"}}, "expectation must be one of empirical, exact, one-draw; got 'sampled'"),
    ({"optimizer": "natural-gradient", "settings": {"approximation": "exact"}},
     "a setting of natural-gradient must be"),
    ({"settings": {"T1": 0}}, "T1 must be an integer of at least 1, got 0"),
    ({"optimizer": "sgd", "settings": {"learning_rate": "fast"}}, "learning_rate must be a number, got 'fast'"),
    ({"optimizer": "sgd", "settings": {"period": 0}}, "period must be an integer of at least 1, got 0"),
    ({"batch": 500}, "batch must be text, got 500"),
    ({"batch": "0"}, "batch must be at least 1 example, got 0"),
    ({"batch": "half"}, "batch must be a number, full, growing or growing:FIRST:STEP, got 'half'"),
    ({"batch": "growing:10"}, "batch must be a number, full, growing or growing:FIRST:STEP, got 'growing:10'"),
    ({"batch": "growing:0:10"}, "batch must be a number, full, growing or growing:FIRST:STEP, got 'growing:0:10'"),
    ({"weight_decay": -1}, "weight_decay must be at least 0, got -1"),
    ({"init": "zero"}, "init must be one of glorot, sparse; got 'zero'"),
    ({"dtype": "float16"}, "dtype must be one of float32, float64; got 'float16'"),
    ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ({"side": 14}, "side is a setting of mnist:FOLDER, not of digits"),
    ({"data": "mnist:x", "side": "14"}, "side must be an integer of at least 1, got '14'")])
def test_what_is_unknown_or_out_of_range_is_refused_when_it_is_said(given_, word):
    with pytest.raises(ValueError, match=word):
        Settings(**given_)


@pytest.mark.parametrize(("given_", "word"), [
    ({"net": "32-3-32"}, "net must have 64 inputs, as digits has; it has 32"),
    ({"net": "64-3-8"}, "net must have 64 outputs for the inputs of digits, since its likelihood is bernoulli; it has"),
    ({"net": "64-3-9", "likelihood": "categorical"}, "net must have 10 outputs for the labels of digits, since its "
                                                     "likelihood is categorical; it has 9"),
    ({"batch": "1501"}, "batch must be at most the 1500 examples of digits, got 1501"),
    ({"batch": "growing:2000:9", "data": "mnist:/nowhere"}, "folder /nowhere does not hold t10k-images")])
def test_what_does_not_fit_the_data_is_refused(given_, word):
    with pytest.raises(ValueError, match=word):
        Settings(**given_).task()


def test_the_side_of_mnist_is_told_where_it_does_not_fit():
    x = np.zeros((4, 196))
    with pytest.raises(ValueError, match="net must have 196 inputs, as mnist:here has at side 14; it has 784"):
        Settings(data="mnist:here", side=14).task(Dataset(x, np.zeros(4, np.int64), x, np.zeros(4, np.int64)))


def test_curves_have_no_labels():
    x, none = np.zeros((4, 784)), np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="likelihood categorical needs labels, and curves has none"):
        Settings(data="curves", net="784-3-10").task(Dataset(x, none, x, none))


def test_an_unknown_optimizer_has_no_settings():
    with pytest.raises(ValueError, match=r"optimizer must be one of adam, kfac, .*; got 'lbfgs'"):
        module.optimizer_settings("lbfgs")


def test_a_changed_copy_is_checked_as_well():
    with pytest.raises(ValueError, match="T1 must be an integer"):
        replace(Settings(), settings={"T1": 0})
