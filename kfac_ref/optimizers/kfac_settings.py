"""The settings of K-FAC: what the paper has, what the defaults are, and why they differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .. import checks
from ..approximations import BLOCK_DIAGONAL, Approximation
from ..expectations import Expectation, one_draw
from ..model import Model

#: On which examples a step is judged.
SAME, NEXT = "same batch", "next batch"
#: Lambda rises by at least this factor if a step is undone: the paper's omega1 for its T1 = 5.
UNDONE = (19 / 20) ** 5


@dataclass(frozen=True, eq=False)
class Settings:
    """The parameters of Algorithm 2 (sec. 9); raises ValueError if one is out of range.

    ================  ==================  =================  ==========================================================
    argument          paper               default            why it differs
    ================  ==================  =================  ==========================================================
    approximation     both                block-diagonal
    expectation       one draw            the same
    lambda_0          150                 1                  suits classifiers; autoencoders chose 1e-4 to 1e-2
    omega1            (19/20)^T1          the same
    T1                5                   1                  on other examples one measurement says little, several do
    omega2, T2        (19/20)^(T2/2), 20  the same
    T3                20, and k <= 3      the same
    tau1              1/8                 the same
    tau2              1/4                 1                  with a part of the batch, steps can grow without bound
    ceiling           0.95                the same
    gamma_min         none (0)            sqrt(eta)          as in the author's code: below, gamma drifts
    gamma_max         none (inf)          1                  as in the author's code: above, gamma drifts
    lambda_floor      none (0)            1e-4               otherwise lambda decays without bound
    judged_on         same batch          next batch         on its own batch nearly every step looks good: see below
    smoothing         none                0.5                what a small batch says about a step is noisy
    undo              none (None)         1                  momentum would repeat a bad step
    momentum          both                True
    ================  ==================  =================  ==========================================================

    **Why the next batch judges.** The paper measures rho on the batch that the step was fitted to. If a batch has few
    examples, M holds for them and for no others: rho stays near 1, lambda falls to its floor, and in directions that
    these examples do not determine, the steps and the momentum grow without bound. But the prediction of M is no
    measure on other examples either, because part of it is the noise of the batch. Even steps of the best length give
    little of it there, so lambda would rise until nothing moves. What can be measured on other examples is curvature,
    which ends every step::

        h(theta + delta) - h(theta) = slope + curvature,       slope = grad h^T delta,       slope < 0 < curvature

    Along a step of the right length, curvature is half as large as the slope; that is what rho = 1 means. So::

        rho = 2 (1 - curvature / |slope|)

    On the batch of the step, slope is ``2 (M(delta) - M(0))``, and this is the paper's rho. Here it is the slope of the
    loss of all N examples, estimated from two batches of m: the m examples of the step represent themselves, the next
    m represent all others, so the slope is m / N of the slope on the step's batch plus 1 - m / N of that on the next
    one. The curvature is that on the next batch, and both are summed over the last steps. The rest is as in the paper:
    lambda falls if rho > 3/4 and rises if rho < 1/4. A short step has no curvature, however noisy its slope, so lambda
    does not rise without bound. With all examples in each batch and no smoothing, the rule is the paper's.
    ``KFAC(model, judged_on="same batch", T1=5)`` always uses the paper's rule, and saves two forward passes and one
    backward pass per step.
    """

    model: Model                                    #: Network, likelihood and weight decay (eta).
    #: A row of `approximations`, or your own. A row made from a point sees only the current batch, and its structure is
    #: reused until the next refresh.
    approximation: Approximation = BLOCK_DIAGONAL
    expectation: Expectation = one_draw             #: `one_draw` (the paper's), `exact`, ``empirical()`` or your own.
    lambda_0: float = 1.0                           #: The first lambda.
    T1: int = 1                                     #: The period of lambda.
    T2: int = 20                                    #: The period of gamma, a multiple of T3.
    T3: int = 20                                    #: The period of the inverses.
    omega1: float | None = None                     #: The factor of lambda (default: ``(19/20)**T1``).
    omega2: float | None = None                     #: The factor of gamma (default: ``(19/20)**(T2/2)``).
    tau1: float = 1 / 8                             #: The part of the batch for the factors.
    tau2: float = 1.0                               #: The part of the batch for the exact F.
    ceiling: float = 0.95                           #: The largest epsilon of the running average.
    gamma_min: float | None = None                  #: The least gamma (default: sqrt(eta)).
    gamma_max: float = 1.0                          #: The largest gamma; inf for no bound.
    lambda_floor: float = 1e-4                      #: Lambda is not reduced below this.
    #: Where rho is measured: on the batch of the next step, before that step is taken, or on the batch that the step
    #: was fitted to, as in the paper.
    judged_on: str = NEXT
    #: If the next batch judges, rho is a ratio of sums over all judged steps, with this weight per step of age.
    smoothing: float = 0.5
    #: The number N of training examples: if the next batch judges, a batch of m counts as m / N of them (default: as 0
    #: of them, as if no example came twice). `training.train` sets it.
    examples: int | None = None
    #: A judged step is undone if h grew by more than `undo` times the predicted decrease or than ``undo * h``, or is
    #: not finite: the weights go back, lambda rises, momentum restarts. None disables this.
    undo: float | None = 1.0
    momentum: bool = True                           #: Whether delta_0 takes part in delta (sec. 7).

    def __post_init__(self) -> None:
        if not isinstance(self.approximation, Approximation):
            raise ValueError("approximation must be a row of kfac_ref.approximations, or an Approximation of your own, "
                             f"got {self.approximation!r}")
        if not callable(self.expectation):
            raise ValueError(f"expectation must be a function of a point, such as one_draw, got {self.expectation!r}")
        checks.number("lambda_0", self.lambda_0, 0)
        for name in ("T1", "T2", "T3"):
            checks.count(name, getattr(self, name))
        if self.T2 % self.T3:
            raise ValueError(f"T2 must be a multiple of T3, got T2 = {self.T2} and T3 = {self.T3}: the candidates of "
                             "gamma need inverses of their own")
        for name in ("omega1", "omega2"):
            if getattr(self, name) is not None:
                checks.number(name, getattr(self, name), 0, 1, above=True)
        for name in ("tau1", "tau2"):
            checks.number(name, getattr(self, name), 0, 1, above=True)
        checks.number("ceiling", self.ceiling, 0, 1)
        if self.gamma_min is not None:
            checks.number("gamma_min", self.gamma_min, 0)
        if self.gamma_max != math.inf:
            checks.number("gamma_max", self.gamma_max, 0)
        if not self.gamma_max >= self.gamma_low:
            raise ValueError(f"gamma_max must be at least gamma_min = {self.gamma_low:g}, got {self.gamma_max!r}")
        checks.number("lambda_floor", self.lambda_floor, 0)
        checks.known("judged_on", self.judged_on, dict.fromkeys((SAME, NEXT)))
        checks.number("smoothing", self.smoothing, 0, 1)
        if self.examples is not None:
            checks.count("examples", self.examples)
        if isinstance(self.undo, bool):
            raise ValueError(f"undo must be a number or None, got {self.undo}")
        if self.undo is not None:
            checks.number("undo", self.undo, 0)
        if not isinstance(self.momentum, bool):
            raise ValueError(f"momentum must be True or False, got {self.momentum!r}: mu is chosen by the algorithm")

    @property
    def factor1(self) -> float:
        """The factor of lambda: omega1 or its default."""
        return (19 / 20) ** self.T1 if self.omega1 is None else float(self.omega1)

    @property
    def factor2(self) -> float:
        """The factor of gamma: omega2 or its default."""
        return (19 / 20) ** (self.T2 / 2) if self.omega2 is None else float(self.omega2)

    @property
    def gamma_low(self) -> float:
        """The least gamma: gamma_min or its default."""
        return math.sqrt(self.model.weight_decay) if self.gamma_min is None else float(self.gamma_min)

    def clips(self, gamma: float) -> bool:
        """Return whether a candidate of gamma lies outside its range."""
        return gamma * self.factor2 < self.gamma_low or gamma / self.factor2 > self.gamma_max
