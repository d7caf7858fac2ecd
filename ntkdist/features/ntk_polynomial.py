"""Polynomials with non-negative coefficients that stand in for the tangent kernel on unit rows.

Legend: θ the angle between two rows, t = cos θ; K(t) the kernel of a depth; K_p(t) = Σ_{j ≤ p} c_j t^j.
"""

from functools import cache

import numpy as np
from numpy.polynomial.polynomial import polyval, polyvander
from numpy.typing import NDArray
from scipy.optimize import linprog

from ntkdist.kernels import NTK

F8 = NDArray[np.float64]
ANGLES, FINE = 401, 20001  # at which the polynomial is fitted, and measured
FLOOR = 0.01  # of the weight 1/t², whose largest value is one over this
UNIT = 2.0**-20  # coefficients are whole multiples, so that the roundings of a solver do not show


@cache
def coefficients(depth: int, degree: int) -> F8:
    """c_0 … c_p ≥ 0 with the least max |K_p(t) − K(t)| / max(t², 0.01) over angles of [0, π], by linear programming.

    Cosines of rows crowd about 0, the more so the longer the rows, and there the weight makes K_p exact to a
    thousandth of K(1) and less; at the ends, t = ±1, the error is some tenths larger than the least uniform one.
    """
    t, k = _kernel(depth, ANGLES)
    powers, weight = polyvander(t, degree), np.maximum(t**2, FLOOR)[:, None]
    found = linprog(
        np.append(np.zeros(degree + 1), 1.0),
        A_ub=np.block([[powers, -weight], [-powers, -weight]]),
        b_ub=np.concatenate([k, -k]),
        bounds=(0, None),
        method="highs",
    )
    c: F8 = np.rint(found.x[:-1] / UNIT) * UNIT
    c.flags.writeable = False
    return c


def uniform_error(depth: int, c: F8) -> float:
    """max |K_p − K| on [−1, 1]."""
    t, k = _kernel(depth, FINE)
    return float(np.abs(polyval(t, c) - k).max())


def _kernel(depth: int, count: int) -> tuple[F8, F8]:
    theta = np.linspace(0, np.pi, count)
    return np.cos(theta), NTK(depth).zonal(theta)
