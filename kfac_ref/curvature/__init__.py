"""Structures: matrices that stand for the Fisher, all behind one interface; see `Curvature`."""

from .base import Curvature
from .block_diagonal import BlockDiagonal
from .eigen_damped import EigenDamped
from .exact import Exact
from .exact_block_diagonal import ExactBlockDiagonal
from .full import Full

__all__ = ["BlockDiagonal", "Curvature", "EigenDamped", "Exact", "ExactBlockDiagonal", "Full"]
