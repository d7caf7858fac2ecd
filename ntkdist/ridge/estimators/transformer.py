"""Kernel features as a step of a scikit-learn pipeline."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset
from ntkdist.data.scaling import Preprocessing
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.ridge.estimators.base import KernelEstimator
from ntkdist.ridge.estimators.fitting import fit_map
from ntkdist.ridge.estimators.inputs import as_value_errors, dataset, is_dataset, training_rows


class FeatureTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, KernelEstimator):
    """A transformer from rows to features, φ(x)·φ(y) ≈ k(x, y): a linear model of them approximates a kernel method.

    Parameters
    ----------
    features : FeatureMap or kernel, optional
        By default ``ZonalFeatures(512, NTK(depth=2, bias=1.0))``; for a kernel, its `Nystrom` map of 1,024 landmarks.
    inputs : {"auto", "columns", "channels", "none"}
        Scaling of X.
    clip : {"range", "none"} or pair of float
        Clip new values to the range of every column of the X that was fitted to.
    front, one_hot, nan, random_state
        As in `NTKRidge`.  As y is ignored, a column of more than ``one_hot`` categories becomes their counts.

    Attributes
    ----------
    preprocessing_ : Preprocessing
    features_ : FeatureMap or FittedMap
        The map, fitted to X if it is one that needs a sample of rows.

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).standard_normal((300, 3))
    >>> nd.FeatureTransformer(nd.ZonalFeatures(128)).fit_transform(x).shape
    (300, 128)
    """

    def __init__(
        self,
        features: AnyFeatureMap | None = None,
        *,
        inputs: str = "auto",
        clip: str = "range",
        front: str = "standard",
        one_hot: int = 16,
        nan: str = "impute",
        random_state: int | None = None,
    ) -> None:
        self.features, self.inputs, self.clip = features, inputs, clip
        self.front, self.one_hot, self.nan, self.random_state = front, one_hot, nan, random_state

    def fit(self, X: Any, y: Any = None) -> "FeatureTransformer":
        """Fit the scaling, and the map if it needs a sample of rows; y is ignored.  X is as in `NTKRidge.fit`."""
        with as_value_errors():
            rows: Arrays | Dataset = (
                dataset(X, None, nan=self.nan) if is_dataset(X) else training_rows(self, X).without_targets()
            )
            self.preprocessing_, self.features_ = fit_map(rows, self.feature_map, self.preprocess)
        if isinstance(rows, Dataset):
            self._set_columns(self.preprocessing_)
        self._n_features_out = self.features_.n_components
        return self

    def transform(self, X: Any) -> Any:
        """Return features, (n, n_components), in float32 for X of float32, else float64; lazily for Dask's X."""
        check_is_fitted(self)
        dtype = np.dtype(np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64)
        call = functools.partial(_features, self.preprocessing_, self.features_)
        return self._map_rows(X, call, self.features_.n_components, self.preprocessing_, dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _features(preprocessing: Preprocessing, features: AnyMap, x: Any) -> NDArray[Any]:
    """Compute the features of raw rows."""
    dtype = np.float32 if x.dtype == np.float32 else np.float64
    return features(preprocessing.inputs(x, dtype))
