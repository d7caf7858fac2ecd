"""Exact kernels, as values: ``NTK(depth=2)(x, y)`` is an (n, n') matrix.

All are functions of the angle, never of a clipped cosine: near ±1 the arc cosine loses half of the digits, so angles of
nearly parallel rows are computed from the length of x̂ − ŷ, and each layer passes on 1 − Σ, not Σ.  Likewise distances
of close rows are computed from their difference.
"""

# ruff: noqa: F401

from ntkdist.kernels.base import Kernel, angle_of, kappa0, one_minus_kappa1, with_bias
from ntkdist.kernels.cntk import CNTK
from ntkdist.kernels.patches import PatchKernel
from ntkdist.kernels.rows import (
    NNGP,
    NTK,
    GammaExponential,
    Gaussian,
    Laplace,
    ProductLaplace,
    RadialKernel,
    ZonalKernel,
)

RowKernel = NTK | NNGP | Gaussian | Laplace | GammaExponential  # of rows, whatever their shape
AnyKernel = RowKernel | ProductLaplace | CNTK | PatchKernel  # what a job file or a saved model may name
