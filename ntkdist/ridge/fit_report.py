"""The report of a fit: each field of ``report.json`` with its unit.

Reports of earlier versions lack some fields, which have defaults here.
"""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ntkdist.solvers import InPlaceCholesky


class Curve(msgspec.Struct):
    """The cross-validated error against the number of features, see `PrefixCurve`."""

    m: list[int]
    rmse: list[float]  # in target units, averaged over targets
    band: list[float] | None = None  # standard error over folds
    alpha: list[list[float]] = []  # of every target, absolute


class ClippedRow(msgspec.Struct):
    """A row with values outside the range."""

    row: int  # of the source, from 0, if the dataset says it, else its position in the dataset
    columns: list[str]  # in which it lies outside


class DataReport(msgspec.Struct, kw_only=True):
    """The rows that were read; weights are sums over rows."""

    store: str
    rows: int  # added to the sums
    dropped_rows: int = 0  # for NaN or Inf
    clipped_rows: int = 0  # to the range of the scaling that was reused, or to quantiles
    clipped_columns: dict[str, int] = {}  # rows clipped in each column
    clipped_first: list[ClippedRow] = []  # the first few
    skipped_rows: int = 0  # of damaged partitions
    skipped_partitions: list[int] = []
    constant_columns: list[str] = []
    targets: list[str] = []  # names, if the dataset has any
    classes: list[str] = []
    class_counts: list[float] = []  # weight of the rows of each class, before class_weight
    class_weight: list[float] = []
    folds: dict[str, Any] = {}  # count, dealt_by (an array of the dataset, or ""), contiguous
    fold_weights: list[float]  # of a Gram that is solved in place: of all but the last fold together, and of that


class RoundReport(msgspec.Struct):
    """A round in which a metric was learned; the first is without one."""

    scale: float  # the length of a row, of those tried, with the least error
    rmse: float  # of the rows held out, in target units, averaged over targets
    alpha_per_row: float
    kept: bool = False
    stretch: float = 1.0  # factor of the length that was chosen for the features of the fit, if kept
    last_rmse: float | None = None  # with those features


class DirectionReport(msgspec.Struct):
    """A leading direction of the metric P, in scaled inputs: a unit eigenvector of PPᵀ."""

    share: float  # of the trace of PPᵀ
    columns: dict[str, float]  # signed weights of its largest columns


class MetricReport(msgspec.Struct, kw_only=True):
    """The learned metric."""

    form: str  # "full" or "diagonal"
    reused: str = ""  # the run that it is from; then the rounds are of that run
    fold: int | None = None  # that no gradient has seen, the one that is scored; absent if reused
    n_components: int | None = None  # of the fits of the rounds; absent if reused
    rounds: list[RoundReport] = []
    ended: str = ""  # why: "rounds" all done, "gain" below a thousandth, or "gradients" that do not vary
    importances: dict[str, float]  # shares of the columns, of steps of one standard deviation
    sensitivities: dict[str, float]  # how far a row moves under the metric per unit of a column
    directions: list[DirectionReport] = []  # absent if the metric is a multiple of the identity

    @property
    def best(self) -> int:
        """The round whose metric was kept."""
        return next((i for i, one in enumerate(self.rounds) if one.kept), 0)


class Products(msgspec.Struct, kw_only=True):
    """Counts of a solver that formed no Gram."""

    passes: int  # over the data
    iterations: int
    mean_iterations: float | UnsetType = UNSET  # of a right-hand side
    sample_rows: int  # of the preconditioner
    largest_residual: float | None  # relative
    unconverged: list[float]  # penalties
    remembered_bytes: int = 0  # mapped rows, the most of any worker


class RunReport(msgspec.Struct, kw_only=True):
    """The cost of a run; processes are named host:pid."""

    id: str = ""
    seconds: dict[str, float]  # by phase, and "total"
    bytes_read: int
    timeline: list[tuple[float, int]] = []  # seconds into the pass and rows of every shard, as it ended
    read_share: float  # of the seconds of the tasks
    workers: int
    peak_memory_bytes: dict[str, int]  # by process
    worker_rows_per_second: dict[str, float] = {}  # by process, while a task of it ran
    projected_memory_bytes: dict[str, int]  # of a worker, by part
    rows_per_second: float
    syrk_flops_per_second: float | UnsetType = UNSET  # of bare products on all workers; absent without a Gram
    gram_flops_per_second: float | UnsetType = UNSET
    gram_to_syrk_ratio: float | UnsetType = UNSET
    products: Products | UnsetType = UNSET  # absent if a Gram was formed


class ChoiceReport(msgspec.Struct):
    """A trial of the choice of features, columns and metric, for a job without features."""

    kernel: str  # as JSON
    front: str
    form: str  # of the metric
    rmse: float  # on rows of a sample that were held out, in units of the targets
    turns: int = 1  # parts of the sample that were held out, one after the other; recipes far from the best have fewer


class FitReport(msgspec.Struct, kw_only=True):
    """The report of a fit."""

    digest: str  # of the job
    notes: list[str]
    finished: str  # UTC, ISO 8601
    plan: dict[str, Any]  # a `Plan`, as plain objects
    data: DataReport
    cv: dict[str, Any] | None  # a `CVResult`, as plain objects
    alpha: list[float]  # of every target, absolute
    alpha_per_row: list[float]  # per unit of training weight
    run: RunReport
    versions: dict[str, str]
    curve: Curve | None = None
    metric: MetricReport | None = None
    choice: list[ChoiceReport] = []  # trials, where features were chosen
    baselines: dict[str, float] = {}  # "mean_rmse" of the targets' means, or "majority_accuracy" of the largest class

    def to_dict(self) -> dict[str, Any]:
        """Return plain objects, with the keys of ``report.json``."""
        return msgspec.to_builtins(self, enc_hook=lambda scalar: scalar.item())

    def summary(self) -> dict[str, Any]:
        """Return the main numbers."""
        cv = self.cv or {}
        return {
            "cv_rmse": cv.get("rmse"),
            "cv_r2": cv.get("r2"),
            "alpha": self.alpha[0] if len(set(self.alpha)) == 1 else self.alpha,
            "rows": self.data.rows,
            "dropped_rows": self.data.dropped_rows,
            "clipped_rows": self.data.clipped_rows,
            "seconds": self.run.seconds["total"],
        }

    @property
    def formed_gram(self) -> bool:
        """A flag: the solver formed a Gram and neither left it in tiles nor solved in it, so equations are saved."""
        in_place = self.plan.get("solver", {}).get("type") == InPlaceCholesky.__name__
        return not (self.run.products or self.plan.get("tile") or in_place)
