"""The base class of the estimators, which maps rows block by block."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

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
from ntkdist.features import AnyFeatureMap, FeatureMap, Nystrom, ZonalFeatures
from ntkdist.kernels import NTK, AnyKernel
from ntkdist.ridge.estimators.inputs import dataset, is_dataset, is_lazy, is_outside, new_rows
from ntkdist.ridge.estimators.nested import BETWEEN, nested, replaced
from ntkdist.ridge.predict import as_fitted
from ntkdist.ridge.source_order import column, order_of
from ntkdist.spec import nearest

DEFAULT = ZonalFeatures(512, NTK(depth=2, bias=1.0))
LANDMARKS = 1024  # of the map of a bare kernel
BLOCK_ROWS = 4096  # of a Zarr array
BlockFunction = Callable[[Any], NDArray[Any]]  # (n, *input_shape) → (n, ...)


class KernelEstimator(BaseEstimator):
    """An estimator that scales rows and maps them to features."""

    features: Any  # a map, a kernel or None; with `takes_several`, also a list of them
    random_state: int | None
    inputs: Any
    clip: Any
    front: Any
    one_hot: Any
    nan: Any
    takes_several: ClassVar[bool] = False  # maps to choose from

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; ``deep`` adds the fields of specs, such as ``features__n_components``."""
        params: dict[str, Any] = super().get_params(deep)
        return params | {path: one for name in params if deep for path, one in nested(name, params[name]).items()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters; a spec, which is never changed, is replaced where its fields are given by their paths.

        Raises
        ------
        InputError
            If there is no such parameter, or no such field of its value.
        """
        super().set_params(**{name: value for name, value in params.items() if BETWEEN not in name})
        inside: dict[str, dict[str, Any]] = {}
        for path, value in params.items():
            name, between, rest = path.partition(BETWEEN)
            if between:
                inside.setdefault(name, {})[rest] = value
        known = self.get_params(deep=False)
        for name, changes in inside.items():
            if name not in known:
                raise InputError(f"{type(self).__name__} has no parameter '{name}'{nearest(name, tuple(known))}")
            setattr(self, name, replaced(name, known[name], changes))
        return self

    @property
    def feature_map(self) -> AnyFeatureMap:
        """The feature map that is used, of several the first."""
        return self.feature_maps[0]

    @property
    def feature_maps(self) -> tuple[AnyFeatureMap, ...]:
        """The feature maps to choose from."""
        several = self.takes_several and isinstance(self.features, list | tuple) and len(self.features) > 0
        given: Any = self.features if several else [DEFAULT if self.features is None else self.features]
        maps = [Nystrom(LANDMARKS, each) if isinstance(each, AnyKernel) else each for each in given]
        if wrong := [each for each in maps if not isinstance(each, FeatureMap)]:
            list_of = ", or a list of them" if self.takes_several else ""
            raise SpecError(
                f"features is {wrong[0]!r}; expected a feature map, such as nd.ZonalFeatures(1024), or a kernel, such "
                f"as nd.Gaussian(1.0){list_of}"
            )
        return tuple(self._seeded(each) for each in maps)

    def _seeded(self, features: AnyFeatureMap) -> AnyFeatureMap:
        """Return a map with the seed of ``random_state``, if that is given and the map draws."""
        if self.random_state is None or not hasattr(features, "seed"):
            return features
        if not isinstance(self.random_state, int | np.integer) or isinstance(self.random_state, bool):
            raise InputError(
                f"random_state is {self.random_state!r}; expected an integer, the seed of the feature map, or None for "
                "the map's own"
            )
        return msgspec.structs.replace(features, seed=self.random_state)

    @property
    def preprocess(self) -> Preprocess:
        """The scaling, clipping and encoding of inputs."""
        if self.nan not in ("impute", "error"):
            raise SpecError(f'nan is {self.nan!r}; expected "impute" or "error"')
        front: Any = "standard" if self.front == "auto" else self.front
        return Preprocess(inputs=self.inputs, clip=self.clip, front=front, one_hot=self.one_hot)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        maps = self.features if isinstance(self.features, list | tuple) else [self.features]
        tags.input_tags.sparse = all(getattr(each, "takes_sparse", False) for each in maps)
        tags.input_tags.allow_nan = self.nan == "impute"
        return tags

    def _set_columns(self, pre: Preprocessing) -> None:
        """Set scikit-learn's attributes of the columns, from a dataset's."""
        self.n_features_in_ = pre.input_shape[0]
        if pre.columns:
            self.feature_names_in_ = np.array(pre.columns, object)

    def _map_rows(
        self, x: Any, function: BlockFunction, columns: int, pre: Preprocessing, dtype: Any = np.float64
    ) -> Any:
        """Apply a function to blocks of rows; it returns (n, columns), or (n,) if ``columns`` is 0.

        For Dask's rows the result is lazy; for a dataset it is in the order of its source.
        """
        check_is_fitted(self)
        if is_dataset(x):
            return _map_dataset(dataset(x, None), function, pre)
        x = new_rows(self, x, pre.encoding)
        if is_lazy(x):
            x = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
            wide = (columns,) if columns else ()
            return x.map_blocks(
                _apply,
                as_delayed(function),
                dtype=dtype,
                token="ntkdist",
                chunks=(x.chunks[0], *((n,) for n in wide)),
                drop_axis=list(range(1 + len(wide), x.ndim)),
                meta=np.empty((0,) * (1 + len(wide)), dtype),
            )
        if is_outside(x):
            starts = range(0, max(x.shape[0], 1), BLOCK_ROWS)
            return np.concatenate([function(np.asarray(x[i : i + BLOCK_ROWS])) for i in starts])
        return function(x)


def _apply(x: Any, function: BlockFunction) -> NDArray[Any]:
    """Call a function that is an argument, because Dask computes arguments first."""
    return function(x)


def _map_dataset(data: Dataset, function: BlockFunction, pre: Preprocessing) -> NDArray[Any]:
    """Apply a function to every row of a dataset, in the order of its source; refuse rows with NaN."""
    data = as_fitted(msgspec.structs.replace(data, nan="error"), pre)
    layout = data.layout(labelled=False)
    matching = pre.match(layout, data.store)
    source = Source(data, layout, 0, resources(None).threads, labelled=False)
    spans = [layout.span(i) for i in range(layout.partitions)]
    out = np.concatenate([function(matching(rows).x) for rows in blocks(source, spans, Tally())])
    if order_of(source, None, progress.silent) != "shuffled":
        return out
    return out[np.argsort(column(source, "row", 0, layout.rows))]
