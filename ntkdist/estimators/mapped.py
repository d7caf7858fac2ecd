"""What the estimators have in common: their map, and how something is made of every block of X, whatever X is."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ntkdist.cluster import resources, shared
from ntkdist.errors import SpecError
from ntkdist.estimators.inputs import dataset, is_dataset, is_lazy, is_outside, new_rows
from ntkdist.features import AnyFeatureMap, FeatureMap, ZonalFeatures
from ntkdist.kernels import NTK
from ntkdist.preprocess import Preprocess, Preprocessing
from ntkdist.shards import Source, blocks
from ntkdist.sums import Tally

DEFAULT = ZonalFeatures(512, NTK(depth=2, bias=1.0))
ROWS = 4096  # of a Zarr array or a dataset, at a time
Block = Callable[[Any], NDArray[Any]]  # rows → something of each


class Mapped(BaseEstimator):
    """An estimator that maps rows first."""

    features: AnyFeatureMap | None
    inputs: Any
    clip: Any

    @property
    def feature_map(self) -> AnyFeatureMap:
        """The feature map that is used."""
        if self.features is None:
            return DEFAULT
        if not isinstance(self.features, FeatureMap):
            raise SpecError(f"features is {self.features!r}; expected a feature map, such as nd.ZonalFeatures(1024)")
        return self.features

    @property
    def preprocess(self) -> Preprocess:
        """How inputs are scaled and clipped."""
        return Preprocess(inputs=self.inputs, clip=self.clip)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = getattr(self.features, "takes_sparse", False)
        return tags

    def _know(self, pre: Preprocessing) -> None:
        """What scikit-learn wants to be known of the columns, of a dataset."""
        self.n_features_in_ = pre.input_shape[0]
        if pre.columns:
            self.feature_names_in_ = np.array(pre.columns, object)

    def _each(self, x: Any, block: Block, columns: int, pre: Preprocessing, dtype: Any = np.float64) -> Any:
        """Blocks of rows through a function; lazily and block by block if they are Dask's.

        Parameters
        ----------
        x : as `predict` takes
        block : callable
            (n, *input_shape) → (n, columns), or (n,) if ``columns`` is 0.
        """
        check_is_fitted(self)
        if is_dataset(x):
            return np.concatenate(list(_dataset_blocks(x, block, pre)))
        x = new_rows(self, x)
        if is_lazy(x):
            x = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
            wide = (columns,) if columns else ()
            return x.map_blocks(
                _through,
                shared(block),
                dtype=dtype,
                token="ntkdist",
                chunks=(x.chunks[0], *((n,) for n in wide)),
                drop_axis=list(range(1 + len(wide), x.ndim)),
                meta=np.empty((0,) * (1 + len(wide)), dtype),
            )
        if is_outside(x):
            starts = range(0, max(x.shape[0], 1), ROWS)
            return np.concatenate([block(np.asarray(x[i : i + ROWS])) for i in starts])
        return block(x)


def _through(x: Any, block: Block) -> NDArray[Any]:
    return block(x)


def _dataset_blocks(x: Any, block: Block, pre: Preprocessing) -> Any:
    data = dataset(x, None)
    layout = data.layout(labelled=False)
    matching = pre.match(layout, data.store)
    source = Source(data, layout, 0, resources(None).threads, labelled=False)
    for rows in blocks(source, [layout.span(i) for i in range(layout.partitions)], Tally()):
        yield block(matching(rows).x)
