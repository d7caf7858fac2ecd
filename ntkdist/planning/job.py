"""The job of a user: the TOML file, decoded."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ntkdist.cluster.kinds import AnyCluster
from ntkdist.data.augment import Augment
from ntkdist.data.dataset import Dataset, Layout
from ntkdist.data.scaling import Preprocess
from ntkdist.errors import NtkdistError, SpecError
from ntkdist.features import AnyFeatureMap, CNTKRandomFeatures, Nystrom
from ntkdist.gpu import Device
from ntkdist.kernels import NTK
from ntkdist.solvers import AnySolver
from ntkdist.spec import Spec, decode, digest, encode, read_toml, set_key

Positive = Annotated[int, Meta(ge=1)]
LEAST_COMPONENTS, MOST_COMPONENTS, ROUNDS = 1024, 4096, 3  # of what is chosen for a job without features
LENGTH_ROWS = 2**14  # of the rows, at least, by which a length is chosen for the features of the fit
AFFORDABLE = 4e12  # products of two features


class PlanTable(Spec, frozen=True, tag=False, repr_omit_defaults=True):
    """The ``[plan]`` of a job; what is absent is resolved from the data, m and the folds.

    Parameters
    ----------
    folds : int
        Of the cross-validation, 5 if absent; 1 for none, which needs a single alpha.  With a holdout it must be absent.
    contiguous : bool
        Each fold is a run of consecutive partitions, as for rows in the order of time; else they are dealt in turn.
    shards : int
        Upper bound on the number of tasks; at least one a fold, at most one a partition (of each fold, where rows are
        dealt to folds one by one).
    fan_in : int
        Sums that are added at once.
    block_rows : int
        Rows that are mapped and multiplied at once; at least m/2 where a Gram is formed.
    threads : int
        Threads of a task; they change its speed, not its bits.
    dtype : {"float32", "float64"}
        Of the features; running sums are float64 either way.
    checkpoint : str
        Directory that keeps the sum of every finished shard, for a run that is cut off to go on from; inside the run
        directory if absent.
    tile : int
        Columns of a tile of the Gram, with solver TiledCholesky; 2,048 if absent.
    device : {"auto", "cpu", "gpu", "gpu-tf32"}
        What maps, multiplies and adds the rows of the equations.  "auto": GPUs if every worker sees one and the map and
        the solver can use it.  "gpu-tf32": products are rounded to TF32, which keeps three digits.
    """

    folds: Positive | None = None
    contiguous: bool = False
    shards: Positive | None = None
    fan_in: Annotated[int, Meta(ge=2)] = 4
    block_rows: Positive | None = None
    threads: Positive | None = None
    dtype: Literal["float32", "float64"] = "float32"
    checkpoint: str = ""
    tile: Positive | None = None
    device: Device | Literal["auto"] = "auto"


class Metric(Spec, frozen=True, tag=False, repr_omit_defaults=True):
    """The ``[metric]`` of a job: a linear map P of the scaled inputs, learned from the gradients of fits in rounds.

    Each round fits a ridge on u = xP, and takes the next P from the average outer product of its gradients (a recursive
    feature machine).  The last fold, or the rows held out, are never among the rows that P is learned from: their error
    chooses the round, the length and the penalty, and is the one that the fit reports.

    Parameters
    ----------
    rounds : int
        The most rounds; they end earlier where one gains less than a thousandth.  0 learns no metric.
    form : {"full", "diagonal"}
        A matrix, or a factor for every column.
    n_components : int
        Features of the fits of the rounds; 2,048, or those of the job if they are fewer, if absent.
    rows : int
        Rows that the rounds use, about; a hash of the positions picks them.
    scales : tuple of float
        Lengths (root of the mean square) that u is tried with in each round.  They stand for the bias of an NTK and the
        length scale of a radial kernel; a homogeneous kernel does not depend on them.  The length of the round that is
        kept is chosen once more, by steps of a factor 1.5 that gain, for the features of the job itself, or, where
        their Gram is in no process whole, of the rounds.
    """

    rounds: Annotated[int, Meta(ge=0)] = 0
    form: Literal["full", "diagonal"] = "full"
    n_components: Positive | None = None
    rows: Positive = 2**17
    scales: tuple[Annotated[float, Meta(gt=0)], ...] = (0.3, 1.0, 3.0)

    def components(self, m: int) -> int:
        """Return the features of the fits of the rounds, where the job has m."""
        return self.n_components or min(m, 2048)

    def share(self, rows: int) -> float:
        """Return the share of so many rows that the rounds use."""
        return min(1.0, self.rows / rows)

    def last_share(self, rows: int, m: int) -> float:
        """Return the share that chooses the length once more, for m features; more rows hardly change it."""
        return min(self.share(rows), max(LENGTH_ROWS, 4 * m) / rows)

    def validate(self) -> None:
        if not self.scales:
            raise SpecError("metric.scales is empty; expected one or more lengths, such as [1.0]")


class Job(Spec, frozen=True, tag=False, repr_omit_defaults=True):
    """A job: the TOML file of a user, decoded.

    Parameters
    ----------
    dataset : Dataset
    features : FeatureMap, optional
        If absent, `fit` chooses it, the front columns and the metric by small fits to a sample of the rows; of images,
        `CNTKRandomFeatures` by their size.
    alphas : sequence of float, or "auto"
        Penalties to choose from; see `cross_validate`.
    alphas_per_row : sequence of float, optional
    alpha_per_target : bool
        Choose a penalty for every target instead of one for all.
    class_weight : {"balanced"}, optional
        Rows of a class k weigh n/(K·n_k) more, of n rows in K classes; n_k counts by weight where rows have weights.
    plan : PlanTable
    preprocess : Preprocess
    metric : Metric
    augment : Augment
        Copies of images, mirrored and shifted, that are rows of their folds.
    solver : Solver, optional
        Chosen by m and the number of alphas if absent.
    cluster : Local or Address, optional
        Or another of `clusters`.
    """

    dataset: Dataset
    features: AnyFeatureMap | None = None
    alphas: tuple[float, ...] | Literal["auto"] = "auto"
    alphas_per_row: tuple[float, ...] | None = None
    alpha_per_target: bool = False
    class_weight: Literal["balanced"] | None = None
    plan: PlanTable = PlanTable()
    preprocess: Preprocess = Preprocess()
    metric: Metric = Metric()
    augment: Augment = Augment()
    solver: AnySolver | None = None
    cluster: AnyCluster | None = None

    @classmethod
    def read(cls, path: str, store: str = "", settings: Sequence[str] = ()) -> "Job":
        """Read a job from a TOML file; a relative dataset path is relative to the current directory.

        Parameters
        ----------
        path : str
        store : str
            Dataset to use instead of the job's own, which need not have one.
        settings : sequence of str
            Keys that are set over those of the file, such as ``"features.n_components=2048"``; values are TOML.

        Raises
        ------
        SpecError
            If there is no such file, or a key or value in it, or in the settings, cannot be.
        """
        data = read_toml(path)
        for setting in settings:
            set_key(data, setting)
        if isinstance(cluster := data.get("cluster"), dict):
            cluster.setdefault("type", "local")
        if store and isinstance(dataset := data.setdefault("dataset", {}), dict):
            dataset["store"] = store
        return decode(data, cls, f"{path} with --set" if settings else path)

    @property
    def warm(self) -> Callable[[], None]:
        """A function that loads, in any process, what reading and mapping the first rows would load."""
        return functools.partial(_warm, self.dataset.absolute(), self.provisional(1).map, self.plan.dtype)

    @property
    def map(self) -> AnyFeatureMap:
        """The feature map; refused where it is still to be chosen."""
        if self.features is None:
            raise SpecError("the job has no [features], which only fit and plan can do without; give a feature map")
        return self.features

    def provisional(self, rows: int, input_shape: tuple[int, ...] = ()) -> "Job":
        """Return the job itself, or, without features, one as large as the job of the choice for so many rows.

        For images it is the job of the choice, which looks at their shape only.
        """
        if self.features is not None:
            return self
        m = components(rows)
        if len(input_shape) > 1:
            return msgspec.structs.replace(self, features=of_images(m, input_shape))
        metric = self.metric if self.metric.rounds else Metric(rounds=ROUNDS, n_components=rounds_components(m))
        return msgspec.structs.replace(self, features=Nystrom(m, NTK(2, 1.0)), metric=metric)

    def validate(self) -> None:
        if self.alphas != "auto" and self.alphas_per_row is not None:
            raise SpecError("both alphas and alphas_per_row are given; give one")
        if (grid := self.grid()) is not None and not (grid and min(grid) >= 0):
            raise SpecError(f"alphas are {list(grid)}; expected one or more numbers, none negative")
        if self.plan.folds == 1 and len(self.grid() or ()) != 1:
            raise SpecError("folds = 1 leaves nothing to choose alpha by; give a single alpha, or more folds")
        if self.dataset.holdout and self.plan.folds is not None:
            raise SpecError(
                f"both folds ({self.plan.folds}) and holdout ('{self.dataset.holdout}') are given; leave out folds: "
                "the rows held out are scored once"
            )
        if self.dataset.fold_array and self.plan.contiguous:
            raise SpecError(
                f"contiguous deals partitions to folds, but '{self.dataset.fold_array}' deals rows; give one of them"
            )
        if self.dataset.fold_array and self.solver and not self.solver.takes_row_folds:
            raise SpecError(
                f"solver {type(self.solver).__name__} takes folds of whole partitions, but '{self.dataset.fold_array}' "
                f"deals rows; leave out {'groups' if self.dataset.groups else 'holdout'}, or use a direct solver"
            )
        if self.plan.folds == 1 and self.features is None and not self.preprocess.reuse:
            raise SpecError("folds = 1 leaves no rows to choose features by; give [features], or more folds")
        if self.metric.rounds:
            self._check_metric()
        if self.solver and self.features:
            self.solver.tile_size(self.features.n_components, self.plan.tile)

    def _check_metric(self) -> None:
        check_augmented_metric(self.metric, self.augment)
        if self.plan.folds == 1:
            raise SpecError("folds = 1 leaves no rows to choose a metric by; give more folds, or metric.rounds = 0")
        if " + " in self.preprocess.reuse:
            raise SpecError(
                "metric.rounds is given, but the metrics of several runs do not add; reuse one run, or leave out rounds"
            )
        if self.features is None:
            return
        if (m := self.metric.n_components or 0) > self.features.n_components:
            raise SpecError(
                f"metric.n_components is {m}, more than the {self.features.n_components} of the features; give fewer"
            )
        if not self.features.has_gradient:
            raise self.features._no_gradient()

    def grid(self) -> tuple[float, ...] | None:
        """Return the penalties given, of either kind; None for "auto"."""
        if self.alphas_per_row is not None:
            return self.alphas_per_row
        return None if isinstance(self.alphas, str) else self.alphas


def check_augmented_metric(metric: Metric, augment: Augment) -> None:
    """Refuse a metric beside copies of images, by SpecError."""
    if metric.rounds and augment.copies > 1:
        raise SpecError(
            "metric.rounds and augment are both given, but a metric is learned for columns, and augment moves images; "
            "leave out one of them"
        )


def components(rows: int) -> int:
    """Return the number of features chosen for so many rows.

    Theirs up to a thousand, then a power of two near 16 times their root, and for many rows as their sums are made in
    minutes.
    """
    rows = max(rows, 1)
    wanted = 2 ** math.ceil(math.log2(16 * math.sqrt(rows)))
    affordable = 2 ** math.floor(math.log2(math.sqrt(AFFORDABLE / rows)))
    return min(max(rows, 8), max(LEAST_COMPONENTS, min(wanted, affordable, MOST_COMPONENTS)))


def of_images(m: int, input_shape: tuple[int, ...]) -> CNTKRandomFeatures:
    """Return the map of m features that is chosen for images of a shape, (height, width, channels).

    It is that of the jobs for images of 28 and 32 pixels: the covariance of a network (NNGP), at half the work of its
    tangent kernel, with pooling, which divides the work by the pixels, cells, and whitened, compressed windows.
    """
    side = min(input_shape[:2])
    pool = (2, 2, 1) if side >= 16 else (2, 1, 1) if side >= 8 else (1, 1, 1)
    grid = min(side // math.prod(pool), 3 if side < 32 else 2, math.isqrt(m // 8))
    fast = CNTKRandomFeatures(m, depth=3, filter_size=3, tangent=False, whiten=0.1, compress=64, width=256)
    return msgspec.structs.replace(fast, pool=pool, grid=max(grid, 1))


def rounds_components(m: int) -> int:
    """Return the features chosen for the fits of a metric's rounds, where the fit has m."""
    return min(m, max(LEAST_COMPONENTS // 2, m // 2))


def _warm(dataset: Dataset, features: AnyFeatureMap, dtype: str) -> None:
    with suppress(NtkdistError):  # the first task that reads it says what is wrong
        dataset.layout()
    features.warm(dtype)


def job_digest(job: Job) -> str:
    """Return a short name for a job on its data, whatever the place of either."""
    return digest(_placeless(job), job.dataset.layout())


def sums_digest(job: Job) -> str:
    """Return a short name for a job's sums, equal for every penalty and every dense solver."""
    return job_digest(of_sums(job))


def of_sums(job: Job) -> Job:
    """Replace all that a job's sums do not depend on."""
    same = {"alphas": (1.0,), "alphas_per_row": None, "alpha_per_target": False, "solver": gram_of(job.solver)}
    return msgspec.structs.replace(job, **same)


def _placeless(job: Job) -> Job:
    """Leave out where a job runs and is kept, and where its data lies."""
    dataset = msgspec.structs.replace(job.dataset, store="")
    plan = msgspec.structs.replace(job.plan, checkpoint="", threads=None)
    return msgspec.structs.replace(job, cluster=None, dataset=dataset, plan=plan)


def identity(job: Job, layout: Layout) -> dict[str, Any]:
    """Describe, as the plain objects of JSON, what a job's digest is of."""
    same = _placeless(job)
    described: dict[str, Any] = msgspec.json.decode(encode({"job": same, "data": layout}))
    return {"digest": digest(same, layout), **described}


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Describe where two identities differ, to follow "another job"; by their digests if ``theirs`` holds no more."""
    differences = list(_differing(theirs["job"], ours["job"])) if "job" in theirs else []
    if "data" in theirs and theirs["data"] != ours["data"]:
        differences.append("the dataset has other content")
    return f": {', '.join(differences)}" if differences else f" ({theirs['digest']}, this job is {ours['digest']})"


def _differing(theirs: Any, ours: Any, path: str = "") -> Iterator[str]:
    """Yield the keys whose values differ; of tables of two types, only the type."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = theirs.keys() | ours.keys()
        for key in ["type"] if theirs.get("type") != ours.get("type") else sorted(keys):
            yield from _differing(theirs.get(key), ours.get(key), f"{path}.{key}" if path else key)
    elif theirs != ours:
        there, here = (
            encode(value.get("type", value) if isinstance(value, dict) else value) for value in (theirs, ours)
        )
        yield f"{path} is {there} there and {here} here"


def gram_of(solver: AnySolver | None) -> AnySolver | None:
    """Return the same value for solvers of the same sums: None for those of a Gram."""
    return type(solver)() if solver and solver.sums != "gram" else None
