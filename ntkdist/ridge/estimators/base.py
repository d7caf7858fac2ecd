"""What the estimators have in common: their map, and how something is made of every block of X, whatever X is."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ntkdist.cluster import progress
from ntkdist.cluster.connect import as_delayed, resources
from ntkdist.cluster.shards import Source, blocks
from ntkdist.cluster.tally import Tally
from ntkdist.data.dataset import Dataset
from ntkdist.data.scaling import Preprocess, Preprocessing
from ntkdist.errors import InputError, SpecError
from ntkdist.features import AnyFeatureMap, FeatureMap, ZonalFeatures
from ntkdist.kernels import NTK
from ntkdist.ridge.estimators.inputs import dataset, is_dataset, is_lazy, is_outside, new_rows
from ntkdist.ridge.model import Equations
from ntkdist.ridge.source_order import column, order_of

DEFAULT = ZonalFeatures(512, NTK(depth=2, bias=1.0))
ROWS = 4096  # of a Zarr array or a dataset, at a time
Block = Callable[[Any], NDArray[Any]]  # rows → something of each


class KernelEstimator(BaseEstimator):
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

    def _before(self, x: Any) -> Equations | None:
        """The sums that those of rows x are to be added to; None if nothing was learnt before."""
        if is_dataset(x):
            raise InputError(
                "X is the place of a dataset, but partial_fit adds rows of arrays; use fit, or add the sums of two "
                "datasets that ntkdist.fit leaves"
            )
        before: Equations | None = getattr(self, "equations_", None)
        if before is None and hasattr(self, "model_"):
            raise InputError("fit did not keep its sums, so none can be added; set keep_equations=True and fit again")
        if before is None:
            return None
        if dealt := getattr(self, "_dealt", ""):
            raise InputError(
                f"'{dealt}' of the dataset that was fitted to deals its rows to folds, and says nothing of rows of "
                "arrays; fit to a dataset that has them all"
            )
        if before.features.spec != self.feature_map:
            raise InputError("features is not the map of the rows learnt before, so sums do not add; call fit instead")
        if len(before.folds) != (folds := getattr(self, "folds", 1)):
            raise InputError(
                f"folds is {folds}, but the rows learnt before are in {len(before.folds)}; set folds back, or call fit"
            )
        return before

    def _each(self, x: Any, block: Block, columns: int, pre: Preprocessing, dtype: Any = np.float64) -> Any:
        """Blocks of rows through a function; lazily and block by block if they are Dask's, those of a dataset in the
        order of its source as `predict` has it.

        Parameters
        ----------
        x : as `predict` takes
        block : callable
            (n, *input_shape) → (n, columns), or (n,) if ``columns`` is 0.
        """
        check_is_fitted(self)
        if is_dataset(x):
            return _of_dataset(dataset(x, None), block, pre)
        x = new_rows(self, x)
        if is_lazy(x):
            x = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
            wide = (columns,) if columns else ()
            return x.map_blocks(
                _through,
                as_delayed(block),
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


def _of_dataset(data: Dataset, block: Block, pre: Preprocessing) -> NDArray[Any]:
    """Every row of a dataset through a function, in the order of its source; one that cannot be is an error."""
    data = msgspec.structs.replace(data, nan="error")
    layout = data.layout(labelled=False)
    matching = pre.match(layout, data.store)
    source = Source(data, layout, 0, resources(None).threads, labelled=False)
    spans = [layout.span(i) for i in range(layout.partitions)]
    out = np.concatenate([block(matching(rows).x) for rows in blocks(source, spans, Tally())])
    if order_of(source, None, progress.silent) != "shuffled":
        return out
    return out[np.argsort(column(source, "row", 0, layout.rows))]
