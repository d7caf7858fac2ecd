"""Polynomials with non-negative coefficients that approximate the arc-cosine functions κ₀ and κ₁ of a cosine t."""

import math
from functools import cache

import numpy as np
from numpy.polynomial.polynomial import polyval
from numpy.typing import NDArray
from scipy.optimize import nnls

from ntkdist.kernels import kappa0, one_minus_kappa1

F8 = NDArray[np.float64]
NODES = 256


@cache
def polynomial(order: int, degree: int, lowest: float) -> F8:
    """Fit coefficients ≥ 0 to κ₀ or κ₁ of cosines in [lowest, 1], from the constant up, at Chebyshev's nodes."""
    t = lowest + (1 - lowest) * (1 + np.cos((np.arange(NODES) + 0.5) * np.pi / NODES)) / 2
    c: F8 = nnls(t[:, None] ** np.arange(degree + 1), _kappa(order, t))[0]
    c.flags.writeable = False
    return c


def polynomial_error(order: int, degree: int, lowest: float) -> float:
    """Return the uniform error of `polynomial`, at 20,000 points."""
    t = np.cos(np.linspace(0, math.acos(lowest), 20_000))
    return float(np.abs(polyval(t, polynomial(order, degree, lowest)) - _kappa(order, t)).max())


def _kappa(order: int, t: F8) -> F8:
    """Compute κ₀ or κ₁ of cosines t."""
    theta = np.arccos(np.clip(t, -1, 1))
    return kappa0(theta) if order == 0 else 1 - one_minus_kappa1(theta)
