"""The loop around an optimizer: the order of the batches, evaluation, and the average of the iterates.

Batches go through the examples in a new random order each epoch. The batch of step k depends only on the seed and the
sizes of the batches before it. The paper's schedule (sec. 13) grows the batch exponentially::

    m_k = min(m_1 exp((k-1)/b), N)                     with b such that m_500 = N

and its iterates are averaged (sec. 13)::

    theta_bar = xi theta_bar + (1 - xi) theta          with xi = min(1 - 1/k, 0.99), so the first is taken whole
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from . import checks
from .checks import Array, Direction, Labels, Rows
from .model import Model
from .optimizers import KFAC
from .parts import mean_over

#: Tells the epochs' generators apart from those of the optimizers, which are seeded with (seed, step).
_BATCHES = 1
#: How a run that diverges can end: with numbers that are not finite, or with factors that no damping makes regular.
DIVERGED = (checks.NotFiniteError, np.linalg.LinAlgError)
#: A run has diverged if its loss ends above this many times the loss at its start. The first steps of runs that go well
#: were seen to rise to twice.
DIVERGENCE = 2.0
#: Whole sets are evaluated in parts of this many examples.
_PART = 2000
_LOOK_AHEAD = 10**6                                     # batches whose sizes are checked before the first step
#: The smallest ratio between two evaluated steps, beyond the first few: iteration counts to a level are accurate only
#: to this factor.
SPACING = 1.1

#: From the number of a step, from 1, to the number of examples in its batch.
Schedule = Callable[[int], int]


class Optimizer(Protocol):
    """What a training run needs of an optimizer."""

    @property
    def model(self) -> Model:
        """The model that it trains."""

    def init(self, weights: Direction, seed: int = 0) -> Any:
        """Return the state before the first step, with a field ``weights``; all sampling is drawn from the seed."""

    def step(self, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        """Return the state after a step on a batch, and its record."""


def fixed(m: int) -> Schedule:
    """Return the schedule of batches of `m` examples."""
    checks.count("m", m)
    return lambda k: m


def growing(N: int, first: int = 1000, full_at: int = 500) -> Schedule:
    """Return the paper's schedule, which grows exponentially from `first` to all N examples at step `full_at`.

    Source: Martens & Grosse 2015, sec. 13.

    Examples
    --------
    >>> [growing(60000)(k) for k in (1, 250, 500, 501)]
    [1000, 7714, 60000, 60000]
    """
    checks.count("N", N)
    checks.count("first", first)
    checks.count("full_at", full_at, 2)
    if first >= N:
        return lambda k: N
    b = (full_at - 1) / math.log(N / first)
    return lambda k: N if k >= full_at else min(round(first * math.exp((k - 1) / b)), N)


def batches(N: int, schedule: Schedule, seed: int, after: int = 0) -> Iterator[Rows]:
    """Yield the rows of batch `after` + 1, ...: a new random order in each epoch, ``slice(None)`` for all N.

    Epoch e is shuffled by a generator of (seed, e). Raises ValueError for a batch larger than the data.
    """
    start = 0                                           # examples before the next batch; one of all N does not count
    for k in range(1, after + 1):
        start += schedule(k) % N
    first = start // N                                  # the epoch of order[0]
    order = [_epoch(N, seed, first)]
    for k in itertools.count(after + 1):
        m = schedule(k)
        _check_size(m, N, k)
        if m == N:
            yield slice(None)
            continue
        while start + m > (first + len(order)) * N:
            order.append(_epoch(N, seed, first + len(order)))
        while start >= (first + 1) * N:
            del order[0]
            first += 1
        offset = start - first * N
        yield np.concatenate(order)[offset:offset + m]
        start += m


def _check_size(m: int, N: int, k: int) -> None:
    if not isinstance(m, (int, np.integer)) or not 1 <= m <= N:
        raise ValueError(f"schedule must give batches of 1..{N} examples, got {m!r} at step {k}")


def _epoch(N: int, seed: int, epoch: int) -> Labels:
    return np.random.default_rng((seed, epoch, _BATCHES)).permutation(N)


def evaluation_steps(iterations: int, spacing: float = SPACING) -> list[int]:
    """Return the steps at which a run is evaluated: 0, then each `spacing` (above 1) times the last, and the end."""
    steps = [0]
    while steps[-1] < iterations:
        steps.append(min(max(steps[-1] + 1, math.ceil(steps[-1] * spacing)), iterations))
    return steps


@dataclass(frozen=True)
class Evaluation:
    """Losses and errors over whole sets after step k, for the current iterate and the average of the iterates."""

    k: int                          # steps taken; 0 is the start
    seconds: float                  # spent in steps so far, without evaluation
    loss: float                     # h over the training set, at the current iterate
    error: float                    # the reported error there
    averaged_error: float           # the same at the averaged iterate
    test_loss: float                # on the held-out set; NaN if there is none
    test_error: float
    averaged_test_error: float


def diverged(evaluations: Sequence[Evaluation]) -> bool:
    """Return whether the last loss is not finite, or above `DIVERGENCE` times the first.

    Losses over the whole training set are compared, so that the noise of small batches does not matter.
    """
    if not evaluations:
        return False
    first, last = evaluations[0].loss, evaluations[-1].loss
    return not (math.isfinite(last) and last <= DIVERGENCE * first)


@dataclass(eq=False)
class History:
    """What a training run returns. It is filled in during the run; a partial history is valid."""

    state: Any                                                          # the optimizer's last; has the weights
    averaged: tuple[Array, ...]                                         # the averaged iterate
    records: list[Any] = field(default_factory=list)                    # the optimizer's, of each step
    evaluations: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0                                                # spent in steps
    interrupted: bool = False                                           # by Ctrl-C

    def add(self, state: Any, record: Any, seconds: float, xi: float) -> None:
        """Take in one step, which took some seconds; `xi` is the decay of the average of the iterates."""
        keep = min(1 - 1 / state.k, xi)
        self.averaged = tuple(keep * a + (1 - keep) * w for a, w in zip(self.averaged, state.weights, strict=True))
        self.state = state
        self.records.append(record)
        self.seconds += seconds


def steps(optimizer: Optimizer, state: Any, x: Any, y: Any, schedule: Schedule, seed: int) -> Iterator[tuple[Any, Any]]:
    """Yield the optimizer's state and record after each step, without end; the k of `state` says which batch is next.

    Examples
    --------
    >>> import numpy as np, kfac_ref as kr
    >>> model, x = kr.Model(kr.MLP((1, 1)), kr.Gaussian()), np.array([[1.0], [2.0]])
    >>> opt = kr.optimizers.SGD(model, learning_rate=0.1)
    >>> run = steps(opt, opt.init([np.zeros((1, 2))]), x, 3 * x, fixed(2), seed=0)
    >>> state, record = next(run)
    >>> record.k, record.loss
    (1, 11.25)
    """
    for rows in batches(len(x), schedule, seed, after=state.k):
        state, record = optimizer.step(state, x[rows], y[rows])
        yield state, record


def train(optimizer: Optimizer, weights: Direction, x: Any, y: Any, iterations: int, schedule: Schedule | None = None,
          seed: int = 0, evaluate_at: Container[int] = (), test: tuple[Any, Any] | None = None, xi: float = 0.99,
          progress: bool = True, name: str = "training", seconds: float = math.inf,
          after_step: Callable[[History], None] | None = None, resume: History | None = None) -> History:
    """Train a model; return the history, complete or as far as it went before Ctrl-C.

    Bad data or settings raise a ValueError before the first step. Source: Martens & Grosse 2015, sec. 13.

    Parameters
    ----------
    x, y : arrays
        All training inputs and targets (or labels).
    iterations : int
        The number of steps, those before `resume` included.
    schedule : function of k, optional
        The size of batch k: `fixed`, `growing`, or your own (default: all examples).
    seed : int
        Of the order of the examples and of the optimizer's sampling.
    evaluate_at : container of int
        The steps after which loss and error are measured over the whole sets; 0 is the start.
    test : (x, y), optional
        A held-out set, measured too.
    xi : float
        The decay of the average of the iterates.
    progress, name : bool, str
        Whether to show a bar on a terminal (it is never shown elsewhere), and its label.
    seconds : float
        Stop after the step with which the time spent in steps reaches this; a run that is evaluated at all is evaluated
        there too.
    after_step : function of History, optional
        Is called after each step and its evaluation; a KeyboardInterrupt from it ends the run like Ctrl-C.
    resume : History, optional
        Go on from its state, average and seconds, to the same bits as one long run; it grows and is returned.
    """
    if isinstance(optimizer, KFAC) and optimizer.examples is None:
        optimizer = replace(optimizer, examples=len(x))     # by which a batch is judged against all examples
    history, x, y = _start(optimizer, weights, x, y, iterations, schedule, seed, evaluate_at, test, xi, seconds, resume)
    schedule = schedule or fixed(len(x))
    run = steps(optimizer, history.state, x, y, schedule, seed)
    # disable=None: no bar where the output is no terminal. A run that seconds end does not know its last step.
    bar = tqdm(desc=name, leave=False, disable=None if progress else True, initial=history.state.k,
               total=iterations if seconds == math.inf else None)
    with bar, _stopped_by_ctrl_c(history):
        if history.state.k in evaluate_at and all(e.k != history.state.k for e in history.evaluations):
            _evaluate(optimizer.model, history, x, y, test)
        while history.state.k < iterations and history.seconds < seconds:
            start = time.perf_counter()
            state, record = next(run)
            spent = time.perf_counter() - start
            history.add(state, record, spent, xi)
            if state.k in evaluate_at:
                _evaluate(optimizer.model, history, x, y, test)
            if not bar.disable:
                bar.set_postfix(_shown(record, history, spent, seconds), refresh=False)
            bar.update()
            if after_step:
                after_step(history)
        if history.seconds >= seconds and history.evaluations and history.evaluations[-1].k < history.state.k:
            _evaluate(optimizer.model, history, x, y, test)
    return history


@contextmanager
def _stopped_by_ctrl_c(history: History) -> Iterator[None]:
    """Note a KeyboardInterrupt in the history."""
    try:
        yield
    except KeyboardInterrupt:
        history.interrupted = True


def _start(optimizer: Optimizer, weights: Direction, x: Any, y: Any, iterations: int, schedule: Schedule | None,
           seed: int, evaluate_at: Container[int], test: tuple[Any, Any] | None, xi: float, seconds: float,
           resume: History | None) -> tuple[History, Array, Any]:
    """Check the arguments of `train` before the first step; return its history and data."""
    checks.count("iterations", iterations, 0)
    checks.number("xi", xi, 0, 1)
    checks.count("seed", seed, 0)
    if seconds != math.inf:
        checks.number("seconds", seconds, 0)
    at = optimizer.model.at(weights, x)
    at.loss(y)                                          # refuses bad targets, and a stack of them
    if test is not None:
        if not isinstance(test, tuple) or len(test) != 2:
            raise ValueError(f"test must be a pair (x, y), got {type(test).__name__}")
        optimizer.model.at(weights, test[0]).loss(test[1])
    if not isinstance(evaluate_at, Container):
        raise ValueError(f"evaluate_at must be a collection of steps, got {evaluate_at!r}")
    if schedule is not None and not callable(schedule):
        raise ValueError(f"schedule must be a function of the step, such as fixed({schedule!r}), got {schedule!r}")
    for k in range(1, min(iterations, _LOOK_AHEAD) + 1):
        _check_size(schedule(k) if schedule else len(at), len(at), k)
    if resume is None:
        state = optimizer.init(weights, seed)
        resume = History(state, state.weights)
    resume.interrupted = False
    return resume, at.x, np.asarray(y)


def _evaluate(model: Model, history: History, x: Any, y: Any, test: tuple[Any, Any] | None) -> None:
    """Add losses and errors over whole sets, at the current iterate and the averaged one, to the history."""
    loss, error = _loss_and_error(model, history.state.weights, x, y)
    _, averaged_error = _loss_and_error(model, history.averaged, x, y)
    held_out = [math.nan] * 3
    if test is not None:
        _, averaged = _loss_and_error(model, history.averaged, *test)
        held_out = [*_loss_and_error(model, history.state.weights, *test), averaged]
    history.evaluations.append(Evaluation(history.state.k, history.seconds, loss, error, averaged_error, *held_out))


def _loss_and_error(model: Model, weights: Direction, x: Any, y: Any) -> tuple[float, float]:
    """Return loss and error over a whole set, in parts of bounded memory."""
    loss, error = mean_over(model.parts(weights, x, y, _PART), lambda at: (at.loss(), at.error()))
    return loss, error


def _shown(record: Any, history: History, spent: float, limit: float) -> dict[str, str]:
    """Return what the progress bar shows of a step."""
    shown = {name.rstrip("_"): f"{getattr(record, name):.3g}" for name in ("loss", "lambda_", "gamma")
             if hasattr(record, name)}
    if history.evaluations:
        shown["error"] = f"{history.evaluations[-1].error:.3g}"
    shown["ms"] = f"{1e3 * spent:.3g}"
    if limit < math.inf:
        shown["left"] = f"{max(0.0, limit - history.seconds):.0f}s"
    return shown
