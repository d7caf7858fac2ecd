"""ntkdist: neural tangent kernels on data that nobody else can load.

The one idea: everything the cluster does is a sum over partitions.  A partition is read from Zarr, mapped through a
feature map that every worker rebuilds from a seed, and turned into a small value with ``+``; the cluster adds; a solver
that knows nothing of clusters turns the sum into weights.  Start reading at `ntkdist.fit`.
"""

from typing import TYPE_CHECKING, Any

from ntkdist.apply import evaluate, featurize, predict
from ntkdist.clusters import Address, Cuda, Gateway, Kubernetes, Local, SchedulerFile, Slurm, SlurmRunner
from ntkdist.compare import compare
from ntkdist.comparison import Comparison
from ntkdist.convert import convert
from ntkdist.data import Dataset
from ntkdist.detach import attach, cancel, status, submit
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
    Linear,
    NTKRandomFeatures,
    NTKSketch,
    Nystrom,
    RandomFourier,
    ZonalFeatures,
)
from ntkdist.fit import FitResult, fit, normal_equations, solve
from ntkdist.influence import leave_one_out
from ntkdist.job import Job, PlanTable
from ntkdist.kernels import CNTK, NNGP, NTK, GammaExponential, Gaussian, Laplace
from ntkdist.model import Equations, RidgeModel
from ntkdist.plan import Plan, plan
from ntkdist.prefixes import PrefixCurve, prefix_curve
from ntkdist.preprocess import Preprocess
from ntkdist.select import CVResult, cross_validate
from ntkdist.solvers import PCG, Cholesky, Eigh, TiledCholesky
from ntkdist.store import load, save
from ntkdist.uncertainty import Factor, conformal_radius

if TYPE_CHECKING:
    from ntkdist.estimators import FeatureTransformer, NTKRidge, NTKRidgeClassifier, NTKRidgeCV

__all__ = [
    "CNTK",
    "NNGP",
    "NTK",
    "PCG",
    "Address",
    "CNTKRandomFeatures",
    "CNTKSketch",
    "CVResult",
    "Cholesky",
    "ClusterError",
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
    "Job",
    "Kubernetes",
    "Laplace",
    "Linear",
    "Local",
    "NTKRandomFeatures",
    "NTKRidge",
    "NTKRidgeCV",
    "NTKRidgeClassifier",
    "NTKSketch",
    "NotConverged",
    "NotPositiveDefinite",
    "NtkdistError",
    "Nystrom",
    "Plan",
    "PlanTable",
    "PlanTooLarge",
    "PrefixCurve",
    "Preprocess",
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
    "cancel",
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
    "prefix_curve",
    "save",
    "solve",
    "status",
    "submit",
]


def __getattr__(name: str) -> Any:
    """The estimators, which load scikit-learn when they are first asked for."""
    if name in ("FeatureTransformer", "NTKRidge", "NTKRidgeCV", "NTKRidgeClassifier"):
        from ntkdist import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'ntkdist' has no attribute '{name}'")
