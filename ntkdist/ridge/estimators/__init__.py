"""Estimators with the interface of scikit-learn, on the same sums, maps and models as `ntkdist.fit`.

They take Dask arrays and frames as dask-ml makes them, and work in its ``ParallelPostFit`` (extra ``ml``).  In dask-ml
2025.1 these do not work with any estimator: ``metrics.r2_score``, and so ``score`` of wrapped regressors (use the
estimator's own), ``metrics.log_loss``, ``HyperbandSearchCV`` and ``compose.ColumnTransformer``.
"""

from ntkdist.ridge.estimators.classification import NTKRidgeClassifier
from ntkdist.ridge.estimators.regression import NTKRidge, NTKRidgeCV
from ntkdist.ridge.estimators.transformer import FeatureTransformer

__all__ = ["FeatureTransformer", "NTKRidge", "NTKRidgeCV", "NTKRidgeClassifier"]
