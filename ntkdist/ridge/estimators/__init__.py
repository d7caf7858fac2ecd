"""The faces for people who live in scikit-learn: estimators over the same sums, maps and models as everything else.

They take Dask's arrays and frames as dask-ml makes them, and work in its ``ParallelPostFit`` (extra ``ml``).  Of
dask-ml 2025.1 these are broken, with any estimator: ``metrics.r2_score``, and so ``score`` of what wraps a regressor
(use the estimator's own), ``metrics.log_loss``, ``HyperbandSearchCV`` and ``compose.ColumnTransformer``.
"""

from ntkdist.ridge.estimators.classification import NTKRidgeClassifier
from ntkdist.ridge.estimators.regression import NTKRidge, NTKRidgeCV
from ntkdist.ridge.estimators.transformer import FeatureTransformer

__all__ = ["FeatureTransformer", "NTKRidge", "NTKRidgeCV", "NTKRidgeClassifier"]
