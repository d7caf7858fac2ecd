"""The models that tables are regressed with: maps of ntkdist, scikit-learn's, xRFM, and plain Dask.

Every model gets the training rows of a split and chooses all it has to choose from them alone; of ntkdist this includes
the conversion to Zarr.  xRFM runs where it is installed (extra ``peers``).
"""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dask
import dask.array as da
import msgspec
import numpy as np
from scipy.linalg import solve
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ntkdist as nd

LENGTHSCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 3.0)  # of standardised columns
NTKS = tuple(nd.NTK(depth, bias) for depth in (1, 2, 3) for bias in (1.0, 3.0))
GAUSSIANS = tuple(nd.Gaussian(length) for length in LENGTHSCALES)
PER_ROW = tuple(10.0**e for e in range(-7, 0))  # penalties of the others' ridges over their training rows
KERNEL_M = 2048  # columns that kernels are compared with: at 512, zonal features prefer a kernel that is worse at 2,048
METRIC_M = 1024  # the same, where each of them learns a metric in rounds
TUNING_M, TUNING_ROWS = 512, 5000  # of scikit-learn's searches, which fit every pair of values for every fold
SCORING = "neg_mean_squared_error"
EXACT_ROWS = 16_000  # more, and an exact kernel is left out
LEAF_ROWS = 10_000


class Part(NamedTuple):
    """The training rows of a split, the columns that a map may have, and the folds of the cross-validation."""

    x: Any
    y: Any
    m: int
    folds: int


class Fitted(NamedTuple):
    """A fitted model, and the values that it chose."""

    predict: Callable[[Any], Any]
    chosen: str


def ours(
    make: Callable[..., Any],
    kernels: Sequence[Any],
    fronts: Sequence[Any] = ("standard",),
    rounds: int = 0,
    of_half: bool = False,
) -> Callable[[Part], Fitted]:
    """Fit a map with the kernel and columns that cross-validate best with few columns, then with all columns.

    A metric may be learned in rounds, with the default of columns or with half of those of the fit.
    """
    candidates = [(kernel, nd.Preprocess(front=front)) for kernel in kernels for front in fronts]

    def fit(part: Part) -> Fitted:
        with tempfile.TemporaryDirectory() as place:
            np.savez(f"{place}/train.npz", x=part.x, y=part.y)
            nd.convert(f"{place}/train.npz", f"{place}/train.zarr", target=["y"])
            plan = nd.PlanTable(folds=part.folds)
            job = nd.Job(nd.Dataset(f"{place}/train.zarr"), nd.Linear(1), plan=plan)

            def fitted(kernel: Any, columns: nd.Preprocess, m: int) -> nd.FitResult:
                metric = nd.Metric(rounds, n_components=m // 2 if of_half else None)
                chosen = {"features": make(m, kernel), "preprocess": columns, "metric": metric}
                return nd.fit(msgspec.structs.replace(job, **chosen))

            few = min(part.m, METRIC_M if rounds else KERNEL_M)
            scores = [fitted(*one, few).cv for one in candidates] if len(candidates) > 1 else []
            kernel, columns = candidates[int(np.argmin([cv.rmse for cv in scores if cv is not None])) if scores else 0]
            model = fitted(kernel, columns, part.m).model
        chosen = [str(kernel)] + [f"{columns.front} columns"] * (len(fronts) > 1)
        return Fitted(model, ", ".join([*chosen, f"alpha per row {model.alpha[0] / len(part.x):.1e}"]))

    return fit


def boosted_trees(part: Part) -> Fitted:
    """Boost trees with early stopping."""
    trees = HistGradientBoostingRegressor(max_iter=2000, learning_rate=0.05, early_stopping=True, random_state=0)
    return Fitted(trees.fit(part.x, part.y).predict, f"{trees.n_iter_} rounds")


def linear(part: Part) -> Fitted:
    """Fit a ridge regression of the columns themselves."""
    return searched(part, lambda m: make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": PER_ROW})


def sampler(part: Part) -> Fitted:
    """Fit scikit-learn's random Fourier features and a ridge."""
    return searched(
        part,
        lambda m: make_pipeline(StandardScaler(), RBFSampler(n_components=m, random_state=0), Ridge()),
        {"ridge__alpha": PER_ROW, "rbfsampler__gamma": gammas()},
    )


def nystroem(part: Part) -> Fitted:
    """Fit scikit-learn's Nyström features and a ridge."""
    return searched(
        part,
        lambda m: make_pipeline(StandardScaler(), Nystroem(n_components=min(m, len(part.x)), random_state=0), Ridge()),
        {"ridge__alpha": PER_ROW, "nystroem__gamma": gammas()},
    )


def exact(kernels: Sequence[Any]) -> Callable[[Part], Fitted]:
    """Fit a ridge regression with the kernel itself, tuned by scikit-learn as in `searched`."""

    def fit(part: Part) -> Fitted:
        if len(part.x) > EXACT_ROWS:
            raise SystemExit(f"{len(part.x):,} rows are more than {EXACT_ROWS:,} for an exact kernel")
        scaler, y_mean = StandardScaler().fit(part.x), part.y.mean()
        x, y = scaler.transform(part.x), part.y - y_mean
        rows, inner = tuning_rows(part)
        grid = {"alpha": [alpha * inner for alpha in PER_ROW]}
        candidates = []
        for kernel in kernels:
            search = GridSearchCV(KernelRidge(kernel="precomputed"), grid, cv=part.folds, scoring=SCORING)
            search.fit(gram(kernel, x[rows], x[rows]), y[rows])
            candidates.append((search.best_score_, search.best_params_["alpha"] / inner, kernel))
        _, per_row, kernel = max(candidates, key=lambda one: one[0])
        model = KernelRidge(kernel="precomputed", alpha=per_row * len(x)).fit(gram(kernel, x, x), y)
        return Fitted(
            lambda new: model.predict(gram(kernel, scaler.transform(new), x)) + y_mean,
            f"{kernel}, alpha per row {per_row:.1e}",
        )

    return fit


def gram(kernel: Any, a: Any, b: Any) -> Any:
    """Compute a kernel's matrix (len(a), len(b)) in little more memory than its own."""
    out = np.empty((len(a), len(b)))
    for i in range(0, len(a), 1000):
        out[i : i + 1000] = kernel(a[i : i + 1000], b)
    return out


def searched(part: Part, make: Callable[[int], Any], grid: dict[str, Sequence[float]]) -> Fitted:
    """Tune a pipeline by scikit-learn on 5,000 rows and 512 columns; penalties keep their size per row."""
    rows, inner = tuning_rows(part)
    name = next(key for key in grid if key.endswith("alpha"))
    search = GridSearchCV(
        make(min(part.m, TUNING_M)),
        {**grid, name: [a * inner for a in grid[name]]},
        cv=part.folds,
        scoring=SCORING,
    ).fit(part.x[rows], part.y[rows])
    best = {**search.best_params_, name: search.best_params_[name] * len(part.x) / inner}
    model = make(part.m).set_params(**best).fit(part.x, part.y)
    return Fitted(model.predict, ", ".join(f"{key.split('__')[1]} {value:.2g}" for key, value in best.items()))


def tuning_rows(part: Part) -> tuple[Any, float]:
    """Draw the rows to search on, and count those in a training set of the search."""
    rows = np.random.default_rng(0).permutation(len(part.x))[:TUNING_ROWS]
    return rows, len(rows) * (1 - 1 / part.folds)


def gammas() -> list[float]:
    """List scikit-learn's parameters of the Gaussian lengthscales."""
    return [0.5 / length**2 for length in LENGTHSCALES]


def xrfm(part: Part) -> Fitted:
    """Fit trees of kernel machines that learn their metric: leaves of 10,000 rows, bandwidth by a held-out fifth."""
    import torch
    from xrfm import xRFM

    scaler, y_mean, y_scale = StandardScaler().fit(part.x), part.y.mean(), part.y.std()
    x = torch.tensor(scaler.transform(part.x), dtype=torch.float32)
    y = torch.tensor((part.y - y_mean) / y_scale, dtype=torch.float32)[:, None]
    held = np.random.default_rng(0).permutation(len(x)) < len(x) // 5

    def fitted(bandwidth: float) -> tuple[float, float, Any]:
        params = {
            "model": {"kernel": "l2", "bandwidth": bandwidth, "exponent": 1.0, "diag": False},
            "fit": {"reg": 1e-3, "iters": 5, "verbose": False, "early_stop_rfm": True},
        }
        model = xRFM(params, LEAF_ROWS, device=torch.device("cpu"), tuning_metric="mse", random_state=0, verbose=False)
        model.fit(x[~held], y[~held], x[held], y[held])
        return float(((np.asarray(model.predict(x[held])) - y[held].numpy()) ** 2).mean()), bandwidth, model

    _, bandwidth, model = min(map(fitted, (3.0, 10.0, 30.0)), key=lambda candidate: candidate[0])

    def predict(rows: Any) -> Any:
        scaled = torch.tensor(scaler.transform(rows), dtype=torch.float32)
        return np.ravel(model.predict(scaled)) * y_scale + y_mean

    return Fitted(predict, f"bandwidth {bandwidth}")


def plain_dask(part: Part) -> Fitted:
    """Fit by plain Dask: features as an array, ``z.T @ z``, one split for the penalty."""
    features = nd.ZonalFeatures(part.m, nd.NTK(2, bias=1.0))
    mean, scale, y_mean = part.x.mean(0), part.x.std(0), part.y.mean()
    held = np.random.default_rng(0).permutation(len(part.x)) < len(part.x) // 5
    sums, tests = [], []
    for rows in (~held, held):
        x = da.from_array((part.x[rows] - mean) / scale, chunks=(2000, -1))
        z = x.map_blocks(features, chunks=(x.chunks[0], (part.m,)), dtype=x.dtype, meta=np.empty((0, 0)))
        sums.append((z.T @ z, z.T @ da.from_array(part.y[rows] - y_mean, chunks=2000)))
        tests.append(z)
    train, rest = dask.compute(*sums)

    def solved(sums: Any, rows: int, alpha: float) -> Any:
        return solve(sums[0] + alpha * rows * np.eye(part.m), sums[1], assume_a="pos")

    grid = [a * train[0].trace() / (~held).sum() for a in PER_ROW]
    coefs = np.stack([solved(train, (~held).sum(), a) for a in grid], axis=1)
    errors = ((tests[1] @ coefs).compute() - (part.y[held] - y_mean)[:, None]) ** 2
    alpha = grid[int(errors.mean(0).argmin())]
    coef = solved([a + b for a, b in zip(train, rest, strict=True)], len(part.x), alpha)
    return Fitted(lambda x: features((x - mean) / scale) @ coef + y_mean, f"alpha per row {alpha:.1e}")


MODELS: dict[str, Callable[[Part], Fitted]] = {
    "Nystrom, NTK": ours(nd.Nystrom, NTKS),
    "ZonalFeatures, NTK": ours(nd.ZonalFeatures, NTKS),
    "NTKRandomFeatures": ours(lambda m, k: nd.NTKRandomFeatures(m, k.depth, bias=k.bias), NTKS),
    "NTKRandomFeatures, published form": ours(
        lambda m, k: nd.NTKRandomFeatures(m, k.depth, variant="paper", bias=k.bias), NTKS
    ),
    "NTKSketch": ours(lambda m, k: nd.NTKSketch(m, k.depth, 8, bias=k.bias), NTKS),
    "Nystrom, Gaussian": ours(nd.Nystrom, GAUSSIANS),
    "Nystrom, Gaussian, metric": ours(nd.Nystrom, GAUSSIANS[2:3], ("standard", "both"), rounds=3),
    "Nystrom, Gaussian, metric of m/2 columns": ours(
        nd.Nystrom, GAUSSIANS[2:3], ("standard", "both"), rounds=3, of_half=True
    ),
    "RandomFourier, Gaussian": ours(nd.RandomFourier, GAUSSIANS),
    "boosted trees": boosted_trees,
    "linear": linear,
    "scikit-learn RBFSampler + Ridge": sampler,
    "scikit-learn Nystroem + Ridge": nystroem,
    "scikit-learn KernelRidge, NTK": exact(NTKS),
    "scikit-learn KernelRidge, Gaussian": exact(GAUSSIANS),
    "xRFM": xrfm,
    "Dask z.T @ z, same zonal map": plain_dask,
}
