"""What a fit looks at before its equations: seeded samples of rows, by weight where that is said."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq

import ntkdist as nd
from ntkdist import random
from ntkdist.data.dataset import Rows
from ntkdist.data.scaling import Preprocessing
from ntkdist.sums.sample import SAMPLE, WEIGHTED, SampleOf

F8 = NDArray[np.float64]
N, SIZE, KINDS = 24_000, 3000, 24  # weights, classes and what is a function of a row repeat with its place


def plain(class_weight: tuple[float, ...] = ()) -> Preprocessing:
    """A scaling of rows of one column that changes nothing."""
    zero, one = np.zeros(1), np.ones(1)
    return Preprocessing((1,), zero, one, zero, one, class_weight=class_weight)


def entered(summand: SampleOf, weight: F8 | None = None, y: NDArray[Any] | None = None) -> NDArray[np.int64]:
    """Which of N numbered rows are in the sample, added up from four pieces."""
    place = np.arange(N)
    rows = Rows(place[:, None].astype(float), y, weight, place)
    total = summand.zero()
    for start in range(0, N, N // 4):
        total = summand.update(total, rows.take(slice(start, start + N // 4)))
    return np.sort(total.x[:, 0]).astype(int)


def expected(chance: F8) -> F8:
    """How likely each row is in a sample of SIZE that is drawn in proportion to something, without replacement."""

    def inside(threshold: float) -> F8:
        return 1 - np.exp(-threshold * chance)

    found: F8 = inside(brentq(lambda threshold: inside(threshold).sum() - SIZE, 0, 100))
    return found


def assert_drawn_by(chance: F8, found: NDArray[np.int64]) -> None:
    """Of the rows of every kind, as many are in the sample as there should be, to four standard deviations."""
    share, is_in = expected(chance), np.isin(np.arange(N), found)
    assert len(found) == SIZE
    for kind in range(KINDS):
        some = np.arange(N) % KINDS == kind
        assert abs(is_in[some].sum() - share[some].sum()) <= 4 * np.sqrt((share * (1 - share))[some].sum())


WEIGHT = np.array([0.0, 1.0, 4.0, 0.25])[np.arange(N) % 4]


def test_rows_without_weight_never_enter_and_others_enter_alike() -> None:
    assert_drawn_by((WEIGHT > 0).astype(float), entered(SampleOf(SIZE, 3, plain()), WEIGHT))
    assert_drawn_by(np.ones(N), entered(SampleOf(SIZE, 3, plain())))
    few = entered(SampleOf(SIZE, 3, plain()), (np.arange(N) < 40).astype(float))
    np.testing.assert_array_equal(few, np.arange(40))


def test_by_weight_rows_enter_in_proportion_to_what_they_weigh_in_the_equations() -> None:
    assert_drawn_by(WEIGHT, entered(SampleOf(SIZE, 5, plain(), by_weight=True), WEIGHT))
    of_class = np.array([3.0, 0.5])
    y = (np.arange(N) // 4) % 2
    summand = SampleOf(SIZE, 5, plain(tuple(of_class)), by_weight=True)
    assert_drawn_by(of_class[y], entered(summand, y=y))
    assert_drawn_by(of_class[y] * WEIGHT, entered(summand, WEIGHT, y))


def test_rows_enter_in_proportion_to_a_function_of_them() -> None:
    def chance(x: F8) -> F8:
        return 1 + 2 * (x[:, 0] % 3)

    of_row = chance(np.arange(N)[:, None].astype(float))
    assert_drawn_by(of_row, entered(SampleOf(SIZE, 1, plain(), chance)))
    assert_drawn_by(of_row * (WEIGHT > 0), entered(SampleOf(SIZE, 1, plain(), chance), WEIGHT))
    assert_drawn_by(of_row * WEIGHT, entered(SampleOf(SIZE, 1, plain(), chance, by_weight=True), WEIGHT))


@pytest.mark.parametrize("weighted", [False, True])
def test_leverage_landmarks_of_a_fit_are_those_of_its_second_pass(make_dataset: Any, weighted: bool) -> None:
    """Drawn again by the scores that the first sample gives; of clustered rows, that is: outside of the cluster."""
    rng = np.random.default_rng(0)
    far = rng.permutation(800) < 80
    x = np.where(far[:, None], 1.0, 0.05) * rng.standard_normal((800, 4))
    weight = (rng.random(800) < 0.7).astype(float) if weighted else np.ones(800)
    store = make_dataset(x, x[:, 0], **({"weights": weight} if weighted else {}))
    dataset, kernel = nd.Dataset(store, weight="weight" if weighted else ""), nd.NTK(2, bias=0.1)
    found = {}
    for kind in ("uniform", "leverage"):
        spec = nd.Nystrom(40, kernel, landmarks=kind, seed=2)
        job = nd.Job(dataset, spec, (1.0,), plan=nd.PlanTable(folds=2), preprocess=nd.Preprocess(inputs="none"))
        found[kind] = nd.fit(job).model.features.arrays["landmarks"]

    def drawn(role: int, chance: F8) -> NDArray[np.int64]:
        with np.errstate(divide="ignore"):
            return np.argsort(-np.log(random.uniforms_of(np.arange(800), 2, 0, role)) / chance)[:40]

    first = drawn(SAMPLE, weight)
    np.testing.assert_array_equal(found["uniform"], x[first])
    scores = spec.row_weights(x[first])
    assert scores is not None
    second = drawn(WEIGHTED, weight * scores(x))
    np.testing.assert_array_equal(found["leverage"], x[second])
    assert far[second].mean() > 3 * far[first].mean()
