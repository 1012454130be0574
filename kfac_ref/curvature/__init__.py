"""Structures: damped matrices C that approximate the Fisher, all with the interface of `Curvature`.

A structure is made from Kronecker factors, ``Structure(factors, damping)``, or, where these do not determine it, from a
point, ``Structure(at, damping, expectation)``. `damping` is lambda + eta, or gamma^2 in its place (sec. 6.6).

====================  =============================================  ===================================================
structure             C                                              remarks
====================  =============================================  ===================================================
`Exact`               F + damping I                                  the reference (sec. 6.1)
`ExactDual`           F + damping I                                  solves in the space of the examples
`ExactBlockDiagonal`  blocks F_ii + damping I                        no blocks between different layers
`Diagonal`            diag(F) + damping I
`Full`                blocks A_ij ⊗ G_ij, plus damping I             F̃ (sec. 3)
`BlockDiagonal`       blocks (A + pi r I) ⊗ (G + r/pi I)             F̆, r = sqrt(damping) (sec. 4.2 and 6.3)
`BlockTridiagonal`    its inverse is block-tridiagonal               F̂, factors damped as in F̆ (sec. 4.3)
`EigenDamped`         blocks A ⊗ G + damping I                       the damping that F̆ approximates
`EKFAC`               blocks Q diag(S) Q^T + damping I               Q eigenvectors of A ⊗ G, S second moments along Q
`InputOnly`           blocks (A + damping I) ⊗ I                     FOOF
====================  =============================================  ===================================================
"""

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

__all__ = ["EKFAC", "BlockDiagonal", "BlockTridiagonal", "Curvature", "Diagonal", "EigenDamped", "Eigenbasis", "Exact",
           "ExactBlockDiagonal", "ExactDual", "Full", "InputOnly", "OfFactors", "OfPoint", "eigenbasis_moments",
           "ekfac_over", "smaller_exact"]
