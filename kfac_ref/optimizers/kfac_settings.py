"""The settings of K-FAC: what the paper has, what the defaults are, and why they differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .. import checks
from ..approximations import BLOCK_DIAGONAL, Approximation
from ..expectations import Expectation, one_draw
from ..model import Model


@dataclass(frozen=True, eq=False)
class Settings:
    """Kronecker-factored approximate curvature, with every part of Algorithm 2.

    Parameters
    ----------
    model : Model
        Network, likelihood and weight decay (eta).
    approximation : Approximation
        A row of `approximations`, or your own. One that is made from a point sees only the current batch and is reused
        until the next refresh.
    expectation : function of a Point
        `one_draw` (the paper's), `exact`, ``empirical()`` or your own.
    lambda_0 : float
        The first lambda.
    T1, T2, T3 : int
        Periods: of lambda, of gamma, of the inverses. T2 must be a multiple of T3.
    omega1, omega2 : float, optional
        Factors of lambda and gamma (default: ``(19/20)**T1`` and ``(19/20)**(T2/2)``).
    tau1, tau2 : float
        The parts of the batch for the factors and for the exact F.
    ceiling : float
        The largest epsilon of the running average.
    gamma_min, gamma_max : float
        The range of gamma; gamma_min None means sqrt(eta).
    lambda_floor : float
        Lambda does not fall below this.
    undo : float or None
        Every T1 steps the step is checked and undone if h grew by more than `undo` times the predicted decrease
        (rho < -undo) or than ``undo * h``, or is not finite: the weights stay, lambda rises, momentum restarts. None
        disables this.
    momentum : bool
        Whether the last step takes part in the next (sec. 7); False gives ``delta = alpha Delta``.

    Raises
    ------
    ValueError
        For settings out of range.

    Notes
    -----
    ================  ==================  =================  ==========================================================
    argument          paper               default            why it differs
    ================  ==================  =================  ==========================================================
    approximation     both                block-diagonal
    expectation       one draw            the same
    lambda_0          150                 1                  suits classifiers; autoencoders chose 1e-4 to 1e-2
    omega1, T1        (19/20)^T1, 5       the same
    omega2, T2        (19/20)^(T2/2), 20  the same
    T3                20, and k <= 3      the same
    tau1              1/8                 the same
    tau2              1/4                 1                  with a part of the batch, steps can grow without bound
    ceiling           0.95                the same
    gamma_min         none (0)            sqrt(eta)          as in the author's code: below, gamma drifts
    gamma_max         none (inf)          1                  as in the author's code: above, gamma drifts
    lambda_floor      none (0)            1e-4               otherwise lambda decays without bound
    undo              none (None)         1                  momentum would repeat a bad step
    momentum          both                True
    ================  ==================  =================  ==========================================================

    Source: Martens & Grosse 2015, Algorithm 2 (sec. 9).
    """

    model: Model
    approximation: Approximation = BLOCK_DIAGONAL
    expectation: Expectation = one_draw
    lambda_0: float = 1.0
    T1: int = 5
    T2: int = 20
    T3: int = 20
    omega1: float | None = None
    omega2: float | None = None
    tau1: float = 1 / 8
    tau2: float = 1.0
    ceiling: float = 0.95
    gamma_min: float | None = None
    gamma_max: float = 1.0
    lambda_floor: float = 1e-4
    undo: float | None = 1.0
    momentum: bool = True

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
        if isinstance(self.undo, bool):
            raise ValueError(f"undo must be a number or None, got {self.undo}")
        if self.undo is not None:
            checks.number("undo", self.undo, 0)
        if not isinstance(self.momentum, bool):
            raise ValueError(f"momentum must be True or False, got {self.momentum!r}: mu is chosen by the algorithm")

    # Settings that follow from others by default.

    @property
    def factor1(self) -> float:
        """The factor of lambda."""
        return (19 / 20) ** self.T1 if self.omega1 is None else float(self.omega1)

    @property
    def factor2(self) -> float:
        """The factor of gamma."""
        return (19 / 20) ** (self.T2 / 2) if self.omega2 is None else float(self.omega2)

    @property
    def gamma_low(self) -> float:
        """The lower end of the range of gamma."""
        return math.sqrt(self.model.weight_decay) if self.gamma_min is None else float(self.gamma_min)

    def clips(self, gamma: float) -> bool:
        """Return whether a candidate of gamma lies outside its range."""
        return gamma * self.factor2 < self.gamma_low or gamma / self.factor2 > self.gamma_max
