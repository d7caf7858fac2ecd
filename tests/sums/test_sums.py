"""Laws of the sums: a pass gives the same sums however the data is cut."""

import itertools
import pickle
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ntkdist.cluster.tally import Tally
from ntkdist.data.moments import Moments
from ntkdist.features import NTKRandomFeatures
from ntkdist.solvers import Cholesky
from ntkdist.sums import Metrics, NormalEquations, TileSums
from ntkdist.sums.rounding import difference_rounding, evaluation_rounding

M, T, N = 7, 2, 60
RNG = np.random.default_rng(0)
Z, Y, W = RNG.standard_normal((N, M)) + 0.5, RNG.standard_normal((N, T)), RNG.uniform(0, 2, N)
CUTS = st.lists(st.integers(0, N), max_size=6).map(lambda cuts: [0, *sorted(cuts), N])


def sums_of(z: NDArray[Any], y: NDArray[Any], w: NDArray[Any] | None = None) -> NormalEquations:
    return NormalEquations.zeros(z.shape[1], 1 if y.ndim == 1 else y.shape[1]).update(z, y, w)


def assert_same(a: NormalEquations, b: NormalEquations, tolerance: float = 1e-12) -> None:
    scale = np.sqrt(np.outer(np.diag(b.gram), np.diag(b.gram))) + 1e-300
    assert np.max(np.abs(a.gram - b.gram) / scale) <= tolerance
    np.testing.assert_allclose(a.rhs, b.rhs, atol=tolerance * 100)
    np.testing.assert_allclose(a.z_sum, b.z_sum, atol=tolerance * 100)
    np.testing.assert_allclose(a.yy, b.yy, atol=tolerance * 100)
    np.testing.assert_allclose(a.y_sum, b.y_sum, atol=tolerance * 100)
    assert a.weight == pytest.approx(b.weight, rel=tolerance)


def test_what_is_summed() -> None:
    e = sums_of(Z, Y, W)
    np.testing.assert_allclose(e.gram, (Z * W[:, None]).T @ Z, atol=1e-12)
    np.testing.assert_allclose(e.rhs, (Z * W[:, None]).T @ Y, atol=1e-12)
    np.testing.assert_allclose(e.z_sum, W @ Z, atol=1e-12)
    np.testing.assert_allclose(e.yy, (Y * W[:, None]).T @ Y, atol=1e-12)
    np.testing.assert_allclose(e.y_sum, W @ Y, atol=1e-12)
    assert e.weight == pytest.approx(W.sum())


@given(CUTS)
def test_any_cutting_gives_the_same_sum(cuts: list[int]) -> None:
    parts = [sums_of(Z[a:b], Y[a:b], W[a:b]) for a, b in itertools.pairwise(cuts)]
    added = parts[0]
    for part in parts[1:]:
        added = added + part
    streamed = NormalEquations.zeros(M, T)
    for a, b in itertools.pairwise(cuts):
        streamed.update(Z[a:b], Y[a:b], W[a:b])
    assert_same(added, sums_of(Z, Y, W))
    assert_same(streamed, sums_of(Z, Y, W))


@given(st.integers(0, N))
def test_subtracting_rows_undoes_adding_them(cut: int) -> None:
    assert_same(sums_of(Z, Y) - sums_of(Z[cut:], Y[cut:]), sums_of(Z[:cut], Y[:cut]) + sums_of(Z[:0], Y[:0]), 1e-10)


def test_addition_leaves_its_terms_alone_and_owns_its_memory() -> None:
    a, b = sums_of(Z[:30], Y[:30]), sums_of(Z[30:], Y[30:])
    before = a.gram.copy()
    total = a + b
    total += a
    np.testing.assert_array_equal(a.gram, before)
    assert_same(total, a + b + a)


def test_updating_after_reading_the_gram_keeps_it_symmetric() -> None:
    e = sums_of(Z[:30], Y[:30])
    assert (e.gram == e.gram.T).all()
    e.update(Z[30:], Y[30:])
    assert (e.gram == e.gram.T).all()
    assert_same(e, sums_of(Z, Y))


def test_large_gram_is_mirrored_across_tiles() -> None:
    z = RNG.standard_normal((40, 600))
    e = sums_of(z, z[:, 0])
    np.testing.assert_allclose(e.gram, z.T @ z, atol=1e-12)


@given(st.lists(st.integers(0, 3), min_size=N, max_size=N))
def test_integer_weights_are_repeated_rows(counts: list[int]) -> None:
    repeated = np.repeat(np.arange(N), counts)
    if len(repeated):
        assert_same(sums_of(Z, Y, np.array(counts, float)), sums_of(Z[repeated], Y[repeated]))


def test_float32_blocks_are_added_in_float64() -> None:
    """A million ones: a float32 running sum of blocks would stop at 2²⁴ = 16,777,216 and lose the rest."""
    ones = np.ones((2**20, 1), np.float32)
    e = NormalEquations.zeros(1, 1)
    for _ in range(17):
        e.update(ones, ones[:, 0])
    e.update(ones[:1], ones[:1, 0])
    assert e.gram[0, 0] == 17 * 2**20 + 1


def test_float32_rounding_is_that_of_a_block() -> None:
    z = np.random.default_rng(1).standard_normal((4000, 20)).astype(np.float32)
    y = z[:, 0].copy()
    e, exact = NormalEquations.zeros(20, 1), sums_of(z.astype(np.float64), y.astype(np.float64))
    for i in range(0, 4000, 500):
        e.update(z[i : i + 500], y[i : i + 500])
    assert_same(e, exact, 1e-5)
    scale = np.sqrt(np.outer(np.diag(exact.gram), np.diag(exact.gram)))
    assert np.max(np.abs(e.gram - exact.gram) / scale) <= 1e-6
    assert e.gram.dtype == np.float64


def test_subset_is_the_equations_of_some_features() -> None:
    assert_same(sums_of(Z, Y, W).subset(slice(0, 4)), sums_of(Z[:, :4], Y, W))
    assert_same(sums_of(Z, Y, W).subset(np.array([5, 1])), sums_of(Z[:, [5, 1]], Y, W))


def test_centred_and_loss_and_trace_are_those_of_the_rows() -> None:
    e = sums_of(Z, Y, W)
    zc, yc = Z - np.average(Z, axis=0, weights=W), Y - np.average(Y, axis=0, weights=W)
    gram, rhs = e.centred()
    np.testing.assert_allclose(gram, (zc * W[:, None]).T @ zc, atol=1e-11)
    np.testing.assert_allclose(rhs, (zc * W[:, None]).T @ yc, atol=1e-11)
    coef, intercept = RNG.standard_normal((M, T)), RNG.standard_normal(T)
    np.testing.assert_allclose(e.loss(coef, intercept), W @ (Y - Z @ coef - intercept) ** 2, rtol=1e-12)
    assert e.trace() == pytest.approx(np.trace(gram))


LEARNABLE = RNG.standard_normal((4000, 5))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_rounding_of_losses_and_of_their_differences_is_bounded(dtype: str, noise: float, weighted: bool) -> None:
    """Compared with every row in extended precision; and no bound is much too large."""
    x, rng = LEARNABLE, np.random.default_rng(1)
    y = np.stack([x[:, 0], np.tanh(x.sum(axis=1))], axis=1) + noise * rng.standard_normal((len(x), 2))
    z, w = NTKRandomFeatures(96, depth=2)(x.astype(dtype)), rng.uniform(0, 3, len(x)) if weighted else np.ones(len(x))
    e = NormalEquations.zeros(96, 2)
    for i in range(0, len(x), 1000):
        e.update(z[i : i + 1000], y[i : i + 1000], w[i : i + 1000] if weighted else None)
    wide, off, losses = np.longdouble, [], []
    for s in Cholesky().solve(e, [1e-3, 1e-1, 1.0, 10.0, 1e3]):
        error = y.astype(wide) - z.astype(wide) @ s.coef.astype(wide) - s.intercept
        losses.append(e.rounded_loss(s.coef, s.intercept))
        off.append((losses[-1].value - w.astype(wide) @ error**2).astype(float))
    late = evaluation_rounding(e.m) / (evaluation_rounding(e.m) + e.rounding)
    ratios, pairs = [abs(a) / loss.rounding for a, loss in zip(off, losses, strict=True)], itertools.pairwise(range(5))
    for i, j in pairs:
        one, other = losses[i], losses[j]
        bound = difference_rounding(one.sketch, other.sketch) + late * (one.rounding + other.rounding)
        ratios.append(abs(off[i] - off[j]) / bound)
    assert max(map(max, ratios)) <= 1
    assert np.median(ratios) > 0.005


def test_rounding_is_that_of_all_blocks_wherever_they_are_added() -> None:
    whole, z = sums_of(Z[:50].astype(np.float32), Y[:50]), Z.astype(np.float32)
    parts = [sums_of(z[i : i + 10], Y[i : i + 10]) for i in range(0, 50, 10)]
    total = sum(parts[1:], parts[0])
    assert whole.rounding == pytest.approx(50**0.5 * 2**-24, rel=1e-12)
    assert total.rounding == pytest.approx(10**0.5 * 2**-24 / 5**0.5, rel=1e-12)
    assert sums_of(Z[:50], Y[:50]).rounding == pytest.approx(50**0.5 * 2**-53, rel=1e-12)
    assert NormalEquations.of_arrays(total.arrays()).rounding == total.subset(slice(0, 3)).rounding == total.rounding
    tf32 = NormalEquations.zeros(M, T, tf32=True).update(z, Y)
    assert tf32.rounding == 2**-11
    older = {name: a for name, a in total.arrays().items() if name != "rounding"}
    assert np.isnan(NormalEquations.of_arrays(older).rounding)
    tiles = TileSums.zeros(M, T, 4, [(0, 0)]).update(z[:10], Y[:10], None, 4)
    assert (tiles + TileSums.of_arrays(tiles.arrays())).rounding == pytest.approx(2 * parts[0]._rounding, rel=1e-12)
    assert np.isnan(TileSums.of_arrays({"0-0": tiles.tiles[0, 0]}).rounding)


def test_size_and_pickle_are_those_of_the_sums() -> None:
    e = sums_of(Z.astype(np.float32), Y)
    assert sys.getsizeof(e) >= 8 * M * M
    again = pickle.loads(pickle.dumps(e))
    assert_same(again, e, 0)
    assert_same(again.update(Z, Y), e + sums_of(Z, Y), 1e-6)


@settings(max_examples=30)
@given(CUTS, st.floats(-1e6, 1e6))
def test_moments_do_not_depend_on_cuts_or_offsets(cuts: list[int], offset: float) -> None:
    x = Z + offset
    total = Moments.zeros(M, 3)
    codes = np.arange(N) % 3
    for a, b in itertools.pairwise(cuts):
        total = total + Moments.of(x[a:b], W[a:b], codes[a:b], 3)
    np.testing.assert_allclose(total.mean, np.average(x, axis=0, weights=W), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(total.std, np.sqrt(np.cov(Z.T, aweights=W, ddof=0).diagonal()), rtol=1e-8)
    np.testing.assert_allclose(total.counts, [W[codes == k].sum() for k in range(3)])
    assert total.rows == N


def test_moments_subtract() -> None:
    left = Moments.of(Z, W, None, 0) - Moments.of(Z[20:], W[20:], None, 0)
    np.testing.assert_allclose(left.mean, np.average(Z[:20], axis=0, weights=W[:20]))
    np.testing.assert_allclose(left.deviation, Moments.of(Z[:20], W[:20], None, 0).deviation)


def test_moments_of_images_are_per_channel() -> None:
    images = RNG.integers(0, 255, (10, 4, 5, 3)).astype(np.uint8)
    found = Moments.of(images, None, None, 0)
    np.testing.assert_allclose(found.mean, images.reshape(-1, 3).mean(axis=0))
    np.testing.assert_allclose(found.std, images.reshape(-1, 3).std(axis=0))


def test_constant_columns_are_found_whatever_their_size() -> None:
    x = np.stack([np.full(50, 0.1), np.full(50, 1e9) + np.arange(50), np.zeros(50)], axis=1)
    assert Moments.of(x, None, None, 0).constant().tolist() == [True, False, True]


def test_beside_and_split_are_inverse() -> None:
    a, b = Moments.of(Z, W, None, 0), Moments.of(Y, W, np.arange(N) % 2, 2)
    first, second = a.beside(b).split(M)
    for mine, theirs in ((first, a), (second, b)):
        np.testing.assert_array_equal(mine.mean, theirs.mean)
        np.testing.assert_array_equal(mine.counts, theirs.counts)


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    guess = Y + RNG.standard_normal(Y.shape)
    parts = [Metrics.of_regression(Y[i::2], guess[i::2], W[i::2]) for i in range(2)]
    found = (parts[0] + parts[1]).summary()
    assert found["rmse"] == pytest.approx(root_mean_squared_error(Y, guess, sample_weight=W))
    assert found["mae"] == pytest.approx(mean_absolute_error(Y, guess, sample_weight=W))
    assert found["r2"] == pytest.approx(r2_score(Y, guess, sample_weight=W))
    assert found["rows"] == N


def test_classification_metrics_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, log_loss

    codes, scores = RNG.integers(0, 3, N), RNG.dirichlet([1, 1, 1], N)
    found = (
        Metrics.of_classes(codes[:20], scores[:20], None) + Metrics.of_classes(codes[20:], scores[20:], None)
    ).summary()
    assert found["accuracy"] == accuracy_score(codes, scores.argmax(axis=1))
    assert found["log_loss"] == pytest.approx(log_loss(codes, scores), rel=1e-4)


def test_tallies_add_and_keep_the_peak_of_each_worker() -> None:
    both = Tally(rows=2, workers={"a": 5, "b": 1}) + Tally(rows=3, dropped=1, workers={"a": 4})
    assert (both.rows, both.dropped, both.workers) == (5, 1, {"a": 5, "b": 1})


def test_tallies_know_how_fast_each_worker_was() -> None:
    both = Tally(worked={"a": (30, 2.0), "b": (9, 3.0)}) + Tally(worked={"a": (10, 2.0)})
    assert both.rates() == {"a": 10.0, "b": 3.0}


def test_dask_sees_the_bytes_of_a_tasks_sum() -> None:
    """A worker spills and pauses by these bytes."""
    from dask.sizeof import sizeof

    from ntkdist.cluster.shards import Part

    assert sizeof(Part(NormalEquations.zeros(300, 1), Tally())) > 8 * 300**2
