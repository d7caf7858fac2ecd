"""ntkdist: neural tangent kernel ridge regression on data larger than memory, distributed on Dask, from Zarr.

All distributed work is a sum over partitions.  A partition is read from Zarr, mapped through a feature map that each
worker rebuilds from a seed, and reduced to a small value with ``+``; the cluster adds these values, and a solver, which
needs no cluster, turns the sum into weights.  Start reading at `ntkdist.fit`.
"""

from typing import TYPE_CHECKING, Any

from ntkdist.cluster.kinds import Address, Cuda, Gateway, Kubernetes, Local, SchedulerFile, Slurm, SlurmRunner
from ntkdist.data.augment import Augment
from ntkdist.data.column_summary import Columns, ColumnSummary, columns
from ntkdist.data.convert import convert
from ntkdist.data.dataset import Dataset
from ntkdist.data.scaling import Preprocess
from ntkdist.errors import (
    ClusterError,
    DataError,
    NotConverged,
    NotPositiveDefinite,
    NtkdistError,
    PlanTooLarge,
    SpecError,
    StoreError,
)
from ntkdist.features import (
    CNTKRandomFeatures,
    CNTKSketch,
    ImageLandmarks,
    Imported,
    Linear,
    NTKRandomFeatures,
    NTKSketch,
    Nystrom,
    PatchLandmarks,
    RandomFourier,
    ZonalFeatures,
)
from ntkdist.kernels import CNTK, NNGP, NTK, GammaExponential, Gaussian, Laplace, PatchKernel, ProductLaplace
from ntkdist.planning.job import Job, Metric, PlanTable
from ntkdist.planning.plan import Plan, plan
from ntkdist.report.compare import compare
from ntkdist.report.comparison import Comparison
from ntkdist.ridge.calibrate import calibrate
from ntkdist.ridge.detach import attach, cancel, status, submit
from ntkdist.ridge.fit import FitResult, fit, normal_equations
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.predict import evaluate, featurize, predict
from ntkdist.ridge.predict_table import predict_table
from ntkdist.ridge.prefix_curve import PrefixCurve, prefix_curve
from ntkdist.ridge.residuals import leave_one_out
from ntkdist.ridge.saved import load, save
from ntkdist.ridge.solve import solve
from ntkdist.solvers import PCG, Cholesky, Eigh, InPlaceCholesky, TiledCholesky
from ntkdist.solvers.cross_validation import CVResult, cross_validate
from ntkdist.solvers.uncertainty import Calibration, Factor, conformal_radius

if TYPE_CHECKING:
    from ntkdist.ridge.estimators import FeatureTransformer, NTKRidge, NTKRidgeClassifier, NTKRidgeCV

__all__ = [
    "CNTK",
    "NNGP",
    "NTK",
    "PCG",
    "Address",
    "Augment",
    "CNTKRandomFeatures",
    "CNTKSketch",
    "CVResult",
    "Calibration",
    "Cholesky",
    "ClusterError",
    "ColumnSummary",
    "Columns",
    "Comparison",
    "Cuda",
    "DataError",
    "Dataset",
    "Eigh",
    "Equations",
    "Factor",
    "FeatureTransformer",
    "FitResult",
    "GammaExponential",
    "Gateway",
    "Gaussian",
    "ImageLandmarks",
    "Imported",
    "InPlaceCholesky",
    "Job",
    "Kubernetes",
    "Laplace",
    "Linear",
    "Local",
    "Metric",
    "NTKRandomFeatures",
    "NTKRidge",
    "NTKRidgeCV",
    "NTKRidgeClassifier",
    "NTKSketch",
    "NotConverged",
    "NotPositiveDefinite",
    "NtkdistError",
    "Nystrom",
    "PatchKernel",
    "PatchLandmarks",
    "Plan",
    "PlanTable",
    "PlanTooLarge",
    "PrefixCurve",
    "Preprocess",
    "ProductLaplace",
    "RandomFourier",
    "RidgeModel",
    "SchedulerFile",
    "Slurm",
    "SlurmRunner",
    "SpecError",
    "StoreError",
    "TiledCholesky",
    "ZonalFeatures",
    "attach",
    "calibrate",
    "cancel",
    "columns",
    "compare",
    "conformal_radius",
    "convert",
    "cross_validate",
    "evaluate",
    "featurize",
    "fit",
    "leave_one_out",
    "load",
    "normal_equations",
    "plan",
    "predict",
    "predict_table",
    "prefix_curve",
    "save",
    "solve",
    "status",
    "submit",
]


def __getattr__(name: str) -> Any:
    """Return an estimator; the first access imports scikit-learn."""
    if name in ("FeatureTransformer", "NTKRidge", "NTKRidgeCV", "NTKRidgeClassifier"):
        from ntkdist.ridge import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'ntkdist' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return all public names, also of what is not imported yet."""
    return sorted({*globals(), *__all__})
