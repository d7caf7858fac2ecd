"""Kernels of the angle, and Gegenbauer polynomials."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import eval_gegenbauer

from ntkdist import NNGP, NTK, GammaExponential, Gaussian, Laplace
from ntkdist.spec import encode

F8 = NDArray[np.float64]
KERNELS = [*(NTK(depth) for depth in range(1, 6)), NNGP(2), Gaussian(0.8, True), Laplace(1.0, True)]
KERNELS += [GammaExponential(1.0, 0.5, True)]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=encode)


def gegenbauer(l: int, d: int, t: F8) -> F8:  # noqa: E741
    """C̄_l, with C̄_l(1) = 1."""
    return eval_gegenbauer(l, d / 2 - 1, t) / eval_gegenbauer(l, d / 2 - 1, 1.0)
