"""Polynomials with non-negative coefficients that approximate the tangent kernel on unit rows.

Legend: θ the angle between two rows, t = cos θ; K(t) the kernel of a depth; K_p(t) = Σ_{j ≤ p} c_j t^j.
"""

from functools import cache

import numpy as np
from numpy.polynomial.polynomial import polyval, polyvander
from numpy.typing import NDArray
from scipy.optimize import linprog

from ntkdist.kernels import NTK

F8 = NDArray[np.float64]
ANGLES, FINE = 401, 20001  # numbers of angles for the fit, and for the uniform error
FLOOR = 0.01  # of t² in the weight 1/t² of the fit
UNIT = 2.0**-20  # coefficients are multiples of it, so that they do not depend on a solver's rounding


@cache
def coefficients(depth: int, degree: int) -> F8:
    """Return c_0 … c_p ≥ 0 of least max |K_p(t) − K(t)| / max(t², 0.01) over angles of [0, π], by a linear program.

    Cosines of rows concentrate around 0, more so in higher dimension, and there the weight makes K_p exact to a
    thousandth of K(1) or less; at the ends, t = ±1, the error is some tenths larger than the least uniform one.
    """
    t, k = _kernel(depth, ANGLES)
    powers, weight = polyvander(t, degree), np.maximum(t**2, FLOOR)[:, None]
    program = linprog(
        np.append(np.zeros(degree + 1), 1.0),
        A_ub=np.block([[powers, -weight], [-powers, -weight]]),
        b_ub=np.concatenate([k, -k]),
        bounds=(0, None),
        method="highs",
    )
    c: F8 = np.rint(program.x[:-1] / UNIT) * UNIT
    c.flags.writeable = False
    return c


def uniform_error(depth: int, c: F8) -> float:
    """Return max |K_p − K| on [−1, 1]."""
    t, k = _kernel(depth, FINE)
    return float(np.abs(polyval(t, c) - k).max())


def _kernel(depth: int, count: int) -> tuple[F8, F8]:
    theta = np.linspace(0, np.pi, count)
    return np.cos(theta), NTK(depth).zonal(theta)
