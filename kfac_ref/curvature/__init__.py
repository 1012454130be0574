"""Structures: matrices that stand for the Fisher, all behind one interface; see `Curvature`."""

from .base import Curvature, OfFactors, OfPoint
from .block_diagonal import BlockDiagonal
from .block_tridiagonal import BlockTridiagonal
from .diagonal import Diagonal
from .eigen_damped import EigenDamped
from .eigenbasis import Eigenbasis
from .ekfac import EKFAC, eigenbasis_moments, ekfac_over
from .exact import Exact
from .exact_block_diagonal import ExactBlockDiagonal
from .exact_dual import ExactDual, smaller_exact
from .full import Full
from .input_only import InputOnly

__all__ = [
           "EKFAC",
           "BlockDiagonal",
           "BlockTridiagonal",
           "Curvature",
           "Diagonal",
           "EigenDamped",
           "Eigenbasis",
           "Exact",
           "ExactBlockDiagonal",
           "ExactDual",
           "Full",
           "InputOnly",
           "OfFactors",
           "OfPoint",
           "eigenbasis_moments",
           "ekfac_over",
           "smaller_exact",
]
