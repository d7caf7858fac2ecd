"""Scaling, clipping and metric of inputs, scaling of targets: fitted to the data, and part of the model.

With its scaling in the model, predict takes raw rows.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from ntkdist import backend
from ntkdist.data.dataset import HELD, Layout, Rows
from ntkdist.data.encoding import Encoding, Front
from ntkdist.data.images import Decoding
from ntkdist.data.moments import Mode, Moments, MomentsOf
from ntkdist.data.ranges import Range, SeenRange
from ntkdist.display import Described, names
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import Spec, digest, nearest

F8 = NDArray[np.float64]
Inputs = Literal["auto", "columns", "channels", "none"]
Clip = Literal["range", "none"] | tuple[float, float]
Recoding = tuple[tuple[int, F8], ...]  # columns of the model, with its code for each of a dataset's, and for none


class Preprocess(Spec, frozen=True, repr_omit_defaults=True):
    """Settings of scaling and clipping.

    Parameters
    ----------
    inputs : {"auto", "columns", "channels", "none"}
        Subtract the mean and divide by the standard deviation of every column, or of every channel of images; "auto"
        is columns for vectors, channels for images, and for sparse rows only the division.
    reuse : str
        URL of a run, a model or saved equations whose scaling and range are used unchanged, so that sums of different
        data can be added.  For several URLs with " + " between them, the joint scaling of all their data is used: sites
        that may not share rows fit alone, and then once more with the joint scaling.
    clip : {"range", "none"} or pair of float
        Clip the inputs of new rows to the least and greatest value of every column, or of every channel of images,
        among the training rows with weight; with "none" a value far outside can give a prediction equally far off.
        With a pair such as (0.001, 0.999), clip every number and date of a table, also of training rows, to these two
        quantiles, and scale by mean and standard deviation of the clipped values: a few wild training rows then neither
        widen the range nor spoil the scale.  Quantiles, mean and deviation are those of a sample of 32,768 rows of all
        folds; a column whose quantiles are equal keeps its range.  Cross-validated errors use the range of all folds.
    front : {"standard", "quantile", "both", "bins", "target-bins"}
        Columns that are made of each number of a table: the scaled number; its normal quantile, at most ±3; both; the
        share that lies below it of each of some bins, whose edges are quantiles, or the thresholds of a small tree on
        the targets.  Quantiles and trees are those of a sample of 32,768 rows of all folds.
    bins : int
        Largest number of bins of a number.
    one_hot : int
        Largest number of names of a column of categories that are one-hot.  A column of more becomes a mean of the
        targets by name, for training rows that of the other folds, and the logarithm of a count.
    """

    inputs: Inputs = "auto"
    reuse: str = ""
    clip: Clip = "range"
    front: Front = "standard"
    bins: Annotated[int, Meta(ge=2)] = 16
    one_hot: Annotated[int, Meta(ge=0)] = 16

    def validate(self) -> None:
        if self.quantiles is None:
            return
        low, high = self.quantiles
        if not 0 <= low < high <= 1:
            raise SpecError(f"clip is [{low:g}, {high:g}]; expected two shares, ascending and between 0 and 1")
        if self.reuse:
            raise SpecError(
                f"clip is [{low:g}, {high:g}], but {self.reuse} has the range that is reused; leave out clip"
            )

    @property
    def quantiles(self) -> tuple[float, float] | None:
        """The shares of the quantiles that inputs are clipped to, if they are."""
        return None if isinstance(self.clip, str) else self.clip

    def resolve(self, layout: Layout) -> Mode:
        """Return the mode of scaling for a layout.

        Raises
        ------
        SpecError
            If means would be subtracted from sparse rows, or columns or limits are asked for that only tables have.
        """
        if self.quantiles and (layout.sparse or len(layout.input_shape) != 1):
            raise SpecError(
                f"clip = [{self.quantiles[0]:g}, {self.quantiles[1]:g}] is for tables, but the rows are "
                f'{"sparse" if layout.sparse else "images"}; use "range" or "none"'
            )
        if self.front != "standard" and (layout.sparse or len(layout.input_shape) != 1):
            raise SpecError(
                f'front = "{self.front}" is for tables of numbers, but the rows are '
                f"{'sparse' if layout.sparse else 'images'}; leave it out"
            )
        if self.inputs != "auto":
            if layout.sparse and self.inputs != "none":
                raise SpecError(
                    f'inputs = "{self.inputs}" subtracts means, which would fill sparse rows; use "auto", which only '
                    'divides by standard deviations, or "none"'
                )
            return self.inputs
        if layout.sparse:
            return "scale"
        return "columns" if len(layout.input_shape) == 1 else "channels"


class Round(NamedTuple):
    """A round in which a metric was learned."""

    scale: float  # the length of a row, of those tried, with the least error
    rmse: float  # of the rows held out, in units of the targets, averaged over them
    alpha: float  # per unit of training weight
    kept: bool = False  # whether the metric is that of this round
    stretch: float = 1.0  # factor of the length that was chosen for the map of the fit, in the round that is kept
    last_rmse: float | None = None  # as ``rmse``, with that map; None where the length does not matter
    ended: str = ""  # why the round is the last: "rounds" all done, no "gain", or "gradients" that do not vary


@dataclass(frozen=True, repr=False)
class Preprocessing(Described):
    """Fitted scaling: x ↦ ((clip(x) − x_mean)/x_scale)·P, y ↦ (y − y_mean)/y_scale, classes ↦ centred one-hot."""

    input_shape: tuple[int, ...]
    x_mean: F8  # (d,), or (c,) for channels
    x_scale: F8  # as x_mean; 1 for a column without variance, so that it becomes zero
    y_mean: F8  # (t,)
    y_scale: F8  # (t,)
    classes: tuple[str, ...] = ()  # in the order of the codes; empty for regression
    columns: tuple[str, ...] = ()  # names, if the dataset has any
    target_names: tuple[str, ...] = ()
    vector_target: bool = False  # whether predictions have a second axis
    constant: tuple[str, ...] = ()  # columns without variance in the training data
    class_weight: tuple[float, ...] = ()  # factor of the weights of each class's rows; empty if all are 1
    x_low: F8 = field(default_factory=lambda: np.full(1, -np.inf))  # clipping limits, as x_mean; (1,) without
    x_high: F8 = field(default_factory=lambda: np.full(1, np.inf))
    metric: F8 = field(default_factory=lambda: np.zeros(0))  # P, (d, d), or its diagonal, (d,); empty for the identity
    rounds: tuple[Round, ...] = ()  # in which the metric was learned, the first with a multiple of the identity
    encoding: Encoding | None = None  # of a table with more than numbers, in place of the scaling and clipping
    images: Decoding | None = None  # the way in which the rows were decoded, if they were encoded images

    @classmethod
    def fit(
        cls, mode: Mode, layout: Layout, moments: Moments, balanced: bool = False, clip: Clip = "range"
    ) -> "Preprocessing":
        """Fit the scaling to the sum of `MomentsOf` over the rows, and with ``balanced`` the class weights."""
        x, y = moments.split(MomentsOf(mode, layout).d)
        if not x.weight.any():
            raise DataError("No rows with weight are left to fit on; check nan = and the weights")
        if layout.classes:
            present = [name for name, count in zip(layout.classes, y.counts, strict=True) if count > 0]
            if len(present) < 2:
                raise DataError(
                    f"All rows have the class '{present[0]}'; a classifier needs at least two, check the target"
                )
            y_mean, y_scale = y.counts / y.counts.sum(), np.ones(len(y.counts))
        else:
            y_mean, y_scale = y.mean, np.where(y.constant(), 1.0, y.std)
        d = int(np.prod(layout.input_shape))
        names = column_names(layout, len(x.mean))
        none = mode == "none"
        limits: dict[str, Any] = (
            {} if clip == "none" else dict(zip(("x_low", "x_high"), _range(mode, layout, x), strict=True))
        )
        return cls(
            layout.input_shape,
            np.zeros(d) if none or mode == "scale" else x.mean,
            np.ones(d) if none else np.where(x.constant(), 1.0, x.std),
            y_mean,
            y_scale,
            layout.classes,
            layout.columns,
            layout.target_names,
            layout.targets > 0,
            () if layout.sparse else tuple(names[i] for i in np.flatnonzero(x.constant())),
            _balancing(y.counts) if balanced else (),
            images=layout.images,
            **limits,
        )

    @property
    def range(self) -> Range | SeenRange:
        """The values that are not counted as outside of the training data."""
        return self._limits if self.encoding is None else self.encoding.seen_range

    @property
    def _limits(self) -> Range:
        return Range(self.x_low, self.x_high)

    @property
    def by_channel(self) -> bool:
        """True if all pixels of a channel share a scale."""
        return len(self.x_mean) != int(np.prod(self.input_shape))

    @property
    def mapped_shape(self) -> tuple[int, ...]:
        """The shape of a row that the feature map takes."""
        return self.input_shape if self.encoding is None else (self.encoding.width,)

    def for_fold(self, fold: int) -> "Preprocessing":
        """Return the preprocessing that knows nothing of a fold's targets, for a model of the other folds."""
        return self if self.encoding is None else replace(self, encoding=self.encoding.for_fold(fold))

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the scaling, by name."""
        t = self.t if self.vector_target else None
        return {
            "inputs": " × ".join(f"{n:,}" for n in self.input_shape),
            "columns": names(self.columns) or None,
            "targets": (names(self.target_names) or t) if not self.classes else None,
            "classes": names(self.classes) or None,
            "metric": {0: None, 1: "diagonal", 2: "full"}[self.metric.ndim if self.metric.size else 0],
        }

    @property
    def t(self) -> int:
        return len(self.y_mean)

    def digest(self) -> str:
        """Return a short hash, equal for equal scalings."""
        limits = self._limits if self._limits.bounded else ()
        metric = (self.metric,) if self.metric.size else ()
        arrays = [a.tolist() for a in (self.x_mean, self.x_scale, self.y_mean, self.y_scale, *limits, *metric)]
        more = () if self.encoding is None else (self.encoding.digest(),)
        return digest(self.input_shape, arrays, self.classes, self.columns, self.class_weight, *more)

    def of_rows(self, rows: Rows, dtype: Any) -> NDArray[Any] | csr_array:
        """Scale rows as read; training rows of a fold are encoded by what the other folds say."""
        return self.inputs(rows.x, dtype, rows.fold, rows.places)

    def inputs(
        self, x: NDArray[Any] | csr_array, dtype: Any, fold: int = -1, places: NDArray[np.int64] | None = None
    ) -> NDArray[Any] | csr_array:
        """Encode or scale and clip rows, and apply the metric, in float64, and then cast; sparse rows stay sparse.

        ``fold`` and ``places`` are those of training rows, as `Encoding` takes them.
        """
        return self.measured(self.scaled(x, fold, places)).astype(dtype, copy=False)

    def scaled(self, x: NDArray[Any] | csr_array, fold: int = -1, places: NDArray[np.int64] | None = None) -> Any:
        """Encode or scale and clip rows, in float64, as `inputs` before the metric."""
        if x.shape[1:] != self.input_shape:
            raise DataError(f"Rows have shape {x.shape[1:]}; the model was fitted on {self.input_shape}")
        if self.encoding is not None:
            scaled = self.encoding(x, fold, places)
        elif issparse(x):
            if self.x_mean.any():
                raise DataError("The model subtracts means, which would fill sparse rows; make the rows dense")
            x = csr_array(x)
            scaled = csr_array((x.data / self.x_scale[x.indices], x.indices, x.indptr), x.shape)
        else:
            whole = len(self.x_mean) != x.shape[-1]  # a scale per pixel; otherwise per column or channel
            mean, scale = (a.reshape(self.input_shape) if whole else a for a in (self.x_mean, self.x_scale))
            scaled = x - mean
            scaled /= scale
        if self.encoding is None:
            self._limits.scaled(self.x_mean, self.x_scale).clip(scaled)  # in place, hence after scaling: same bits
        return scaled

    def measured(self, scaled: Any) -> Any:
        """Apply the metric to scaled rows."""
        if not self.metric.size:
            return scaled
        return scaled @ backend.aligned(self.metric) if self.metric.ndim == 2 else scaled * self.metric

    def targets(self, y: NDArray[Any]) -> F8:
        """Scale targets, or encode classes as centred one-hot codes, (n, t)."""
        if self.classes:
            onehot = np.zeros((len(y), self.t))
            onehot[np.arange(len(y)), y] = 1.0
            return onehot - self.y_mean
        return (y.reshape(len(y), -1) - self.y_mean) / self.y_scale

    def weights(self, rows: Rows) -> F8 | None:
        """Compute the weights of rows in the equations, (n,): their own times those of their classes."""
        if not self.class_weight:
            return rows.weight
        weight: F8 = np.array(self.class_weight)[rows.y]
        return weight if rows.weight is None else weight * rows.weight

    def match(self, layout: Layout, source: str) -> "Matching":
        """Map another dataset's columns and class codes to this one's, by name if both have names."""
        columns = None
        if self.columns and layout.columns and self.columns != layout.columns:
            missing = [c for c in self.columns if c not in layout.columns]
            if missing:
                raise DataError(
                    f"{source}: column '{missing[0]}' of the model is missing{nearest(missing[0], layout.columns)}"
                )
            columns = np.array([layout.columns.index(c) for c in self.columns])
        elif layout.input_shape != self.input_shape:
            raise DataError(
                f"{source}: rows have shape {layout.input_shape}; the model was fitted on {self.input_shape}"
            )
        codes = None
        if self.classes and layout.classes:
            positions = {name: i for i, name in enumerate(self.classes)}
            codes = np.array([positions.get(name, -1) for name in layout.classes])
        names = self._match_kinds(columns, layout, source)
        return Matching(source, columns, codes, layout.classes, self._range_in(columns, layout), names)

    def _match_kinds(self, columns: NDArray[np.int64] | None, layout: Layout, source: str) -> "Recoding":
        """Refuse a column of another kind than in training, and map the codes of categories by name."""
        if self.encoding is None and not layout.categories and not layout.dates:
            return ()
        taken = list(range(len(layout.kinds))) if columns is None else columns.tolist()
        d = len(taken)
        ours, known = (self.encoding.kinds, self.encoding.categories) if self.encoding else (("number",) * d, ((),) * d)
        recoding: list[tuple[int, NDArray[np.float64]]] = []
        for i, j in enumerate(taken):
            if layout.kinds[j] != ours[i]:
                name = (layout.columns or self.columns or tuple(f"column {k}" for k in range(d)))[j]
                raise DataError(
                    f"{source}: column '{name}' holds {HELD[layout.kinds[j]]}, but {HELD[ours[i]]} in training; "
                    f"{'convert with --category ' + name if ours[i] == 'category' else 'convert it as then'}"
                )
            if layout.names[j] != known[i]:
                positions = {name: float(code) for code, name in enumerate(known[i])}
                recoding.append((i, np.array([*(positions.get(name, -1.0) for name in layout.names[j]), -1.0])))
        return tuple(recoding)

    def _range_in(self, columns: NDArray[np.int64] | None, layout: Layout) -> Range | SeenRange:
        """Reorder the range as another dataset's columns; columns that are no inputs have no limits."""
        if self.encoding is not None:
            taken = np.arange(len(layout.kinds)) if columns is None else columns
            return self.encoding.seen_range.in_columns(taken, layout)
        if columns is None or not self._limits.bounded:
            return self._limits
        low, high = np.full(len(layout.columns), -np.inf), np.full(len(layout.columns), np.inf)
        low[columns], high[columns] = self._limits
        return Range(low, high)


def column_names(layout: "Layout | Preprocessing", d: int) -> tuple[str, ...]:
    """Return the names of columns, or of channels of images."""
    return layout.columns or tuple(f"column {i}" for i in range(d))


def _range(mode: Mode, layout: Layout, x: Moments) -> tuple[F8, F8]:
    """Compute the limits of the inputs; of unscaled inputs, all pixels of a channel share them."""
    low, high = x.low, x.high
    if layout.sparse:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if mode == "none":
        pixels = len(low) // layout.input_shape[-1], layout.input_shape[-1]
        low = np.tile(low.reshape(pixels).min(axis=0), pixels[0])
        high = np.tile(high.reshape(pixels).max(axis=0), pixels[0])
    return low, high


def _balancing(counts: F8) -> tuple[float, ...]:
    """Compute weights n/(K·n_k) of K non-empty classes with n_k rows, so that each class has total weight n/K."""
    weights = np.zeros(len(counts))
    np.divide(counts.sum() / np.count_nonzero(counts), counts, out=weights, where=counts > 0)
    return tuple(weights.tolist())


@dataclass(frozen=True)
class Matching:
    """A map of another dataset's rows to the model's order of columns and codes of classes."""

    source: str
    columns: NDArray[np.int64] | None
    codes: NDArray[np.int64] | None
    classes: tuple[str, ...]
    range: Range | SeenRange  # of its inputs, in its own order
    names: Recoding = ()

    def __call__(self, rows: Rows) -> Rows:
        x = rows.x if self.columns is None else rows.x[:, self.columns]
        x = self._recoded(x) if self.names else x
        y = rows.y
        if y is not None and self.codes is not None:
            codes = self.codes[y]
            if (codes < 0).any():
                name = self.classes[int(y[codes < 0][0])]
                raise DataError(f"{self.source}: class '{name}' is unknown to the model; evaluate on rows it knows")
            y = codes
        return rows._replace(x=x, y=y)

    def _recoded(self, x: Any) -> NDArray[np.float64]:
        """Replace codes of categories by the model's, −1 for unknown names."""
        x = np.array(x, np.float64)
        for j, codes in self.names:
            x[:, j] = codes[np.where(np.isnan(x[:, j]), -1, x[:, j]).astype(np.int64)]
        return x
