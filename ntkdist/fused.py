"""Element-wise loops compiled to one pass over memory, where NumPy would take thirty.

The loops release the interpreter, so that a task's threads run them side by side.  They are compiled at first use, once
a process: nothing is written to disk, and importing this costs nothing.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

HALF = 7  # coefficients of an even or odd part, at most: one compilation does for every polynomial up to degree 13


def even_odd(
    out: NDArray[Any],
    first: int,
    even: NDArray[Any],
    odd: NDArray[Any],
    shift: float,
    reach: float,
    scale: NDArray[Any],
) -> None:
    """In the columns of ``out`` from ``first`` on, t becomes scale·(even(t² − shift) + t·odd(t² − shift)).

    Parameters
    ----------
    out : (n, m) contiguous array
        t is clipped to ±reach before.
    first : int
    even, odd : (≤ HALF,) arrays
        Coefficients, lowest degree first.
    shift, reach : float
    scale : (n,) array
        Of out's dtype.
    """
    number = out.dtype.type
    coefficients = (tuple(np.pad(c, (0, HALF - len(c))).astype(out.dtype)) for c in (even, odd))
    _loops()[0](out, first, *coefficients, number(shift), number(reach), scale)


@functools.cache
def _loops() -> tuple[Any, ...]:
    import numba

    # Contracting a·b + c to one instruction is the only liberty: NaN and infinity keep their meaning.
    compiled = numba.njit(nogil=True, fastmath={"contract", "nsz"}, error_model="numpy")

    @compiled
    def even_odd(out, first, even, odd, shift, reach, scale):  # type: ignore[no-untyped-def]
        for i in range(out.shape[0]):
            r, row = scale[i], out[i][first:]  # a row cut like this is known to be contiguous, which SIMD needs
            for j in range(row.shape[0]):
                t = row[j]
                t = reach if t > reach else t
                t = -reach if t < -reach else t
                s = t * t - shift
                a, b = even[-1], odd[-1]
                for k in range(len(even) - 2, -1, -1):
                    a = a * s + even[k]
                for k in range(len(odd) - 2, -1, -1):
                    b = b * s + odd[k]
                row[j] = (a + t * b) * r

    return (even_odd,)
