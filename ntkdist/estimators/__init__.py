"""The faces for people who live in scikit-learn: estimators over the same sums, maps and models as everything else."""

from ntkdist.estimators.classification import NTKRidgeClassifier
from ntkdist.estimators.regression import NTKRidge, NTKRidgeCV
from ntkdist.estimators.transformer import FeatureTransformer

__all__ = ["FeatureTransformer", "NTKRidge", "NTKRidgeCV", "NTKRidgeClassifier"]
