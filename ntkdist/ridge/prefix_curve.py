"""The error against the number of features, from one Gram: it shows whether more features would help.

The columns of a map of independent draws contain smaller maps, whose equations are submatrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.display import Described
from ntkdist.errors import SpecError
from ntkdist.ridge.fit_report import Curve
from ntkdist.ridge.model import Equations
from ntkdist.solvers import Cholesky, Solver
from ntkdist.solvers.cross_validation import CVResult, cross_validate

F8 = NDArray[np.float64]
HALVINGS = 4  # sizes m/2 to m/16, which take about a fifth of the work of size m


@dataclass(frozen=True, repr=False)
class PrefixCurve(Described):
    """Cross-validated errors of nested maps.

    Attributes
    ----------
    components : (s,) integer array
        Numbers of columns, ascending; the last is that of the map itself.
    results : tuple of CVResult
        In target units, each with its own penalty.
    """

    components: NDArray[np.int64]
    results: tuple[CVResult, ...]

    def facts(self) -> dict[str, Any]:
        """Return the error at every number of columns."""
        return {f"rmse_{m}": rmse for m, rmse in zip(self.components.tolist(), self.rmse.tolist(), strict=True)}

    @property
    def mse(self) -> F8:
        """Mean squared error, averaged over targets, (s,)."""
        return np.array([cv.chosen.mean() for cv in self.results])

    @property
    def rmse(self) -> F8:
        """Root mean squared error, averaged over targets, (s,)."""
        return np.array([cv.rmse for cv in self.results])

    @property
    def band(self) -> F8:
        """Standard error of ``rmse`` over folds, (s,); nan where one fold was scored."""
        return np.array([cv.rmse_standard_error for cv in self.results])

    def to_dict(self) -> dict[str, Any]:
        """Return plain objects, for a report."""
        return {
            "m": self.components.tolist(),
            "rmse": self.rmse.tolist(),
            "band": self.band.tolist() if np.isfinite(self.band).all() else None,
            "alpha": [cv.alpha.tolist() for cv in self.results],
        }


def prefix_curve(
    equations: Equations,
    cv: CVResult,
    sizes: Sequence[int] | None = None,
    *,
    per_target: bool = False,
    solver: Solver | None = None,
) -> PrefixCurve:
    """Compute the cross-validated error against the number of features, over prefixes of the map.

    A prefix is rescaled to be a map of its own: every point equals a fit of the smaller map with the same draws and the
    same penalties to choose from.

    Parameters
    ----------
    equations : Equations
    cv : CVResult
        Of these equations, in target units, as a fit returns it; its penalties are the grid.
    sizes : sequence of int, optional
        Numbers of columns beside all; by default m/2, m/4, m/8 and m/16, as far as those prefixes exist.
    per_target : bool
        Choose a penalty for each target.
    solver : Solver, optional

    Raises
    ------
    SpecError
        If the map has no prefixes, or none of such a size.
    """
    features, shape = equations.features.spec, equations.preprocessing.mapped_shape
    m = features.n_components
    results = {m: cv}
    for k in [m >> i for i in range(1, HALVINGS + 1)] if sizes is None else sizes:
        try:
            columns, scale = features.prefix(int(k), shape)
        except SpecError:
            if sizes is None and len(results) > 1:
                break  # the size is below the number of exact columns, which every prefix has
            raise
        if k < m:
            folds = [fold.subset(columns, scale) for fold in equations.folds]
            originals = {i: fold.subset(columns, scale) for i, fold in equations.originals.items()}
            result = cross_validate(
                folds,
                solver or Cholesky(),
                "auto" if cv.per_row else cv.alphas.tolist(),
                alphas_per_row=cv.alphas.tolist() if cv.per_row else None,
                extend=False,
                per_target=per_target,
                scored=equations.scored,
                originals=originals,
            )
            results[int(k)] = result.scaled(equations.preprocessing.y_scale)
    components = sorted(results)
    return PrefixCurve(np.array(components), tuple(results[k] for k in components))


def curve_of(equations: Equations, cv: CVResult | None, per_target: bool = False) -> Curve | None:
    """Compute `prefix_curve` for a report; return None without cross-validation or prefixes."""
    if cv is None:
        return None
    try:
        return Curve(**prefix_curve(equations, cv, per_target=per_target).to_dict())
    except SpecError:
        return None
