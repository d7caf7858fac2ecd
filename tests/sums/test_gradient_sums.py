"""Sums of gradient outer products, beside a loop over rows, and the metric that follows from them."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntkdist as nd
from ntkdist.data.dataset import Rows
from ntkdist.data.scaling import Preprocessing
from ntkdist.ridge.metric import next_metric
from ntkdist.sums import gradients
from ntkdist.sums.gradients import ARRAYS, GradientsOf, GradientSums

D, T, N = 3, 2, 57
RNG = np.random.default_rng(3)
X, Y, W = RNG.standard_normal((N, D)) * [1, 5, 0.1] + [0, 2, 1], RNG.standard_normal((N, T)), RNG.uniform(size=N)
MEAN, SCALE = X.mean(axis=0), X.std(axis=0)
FULL = RNG.standard_normal((D, D))


def summand(full: bool, metric: Any = FULL) -> GradientsOf:
    """Gradients of two functions of a metric's inputs."""
    pre = Preprocessing((D,), MEAN, SCALE, np.zeros(T), np.ones(T), vector_target=True, metric=metric)
    features = nd.ZonalFeatures(16, nd.NTK(2, 1.0))
    coef = np.random.default_rng(0).standard_normal((16, T))
    return GradientsOf(features, pre, coef, "float64", full)


def rows(start: int = 0, stop: int = N, weighted: bool = True) -> Rows:
    return Rows(X[start:stop], Y[start:stop], W[start:stop] if weighted else None, np.arange(start, stop))


def total(one: GradientsOf, *parts: Rows) -> GradientSums:
    sums = one.zero()
    for part in parts:
        sums = one.update(sums, part)
    return sums


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_sums_are_those_of_a_loop(full: bool, weighted: bool) -> None:
    one = summand(full)
    u = ((X - MEAN) / SCALE) @ FULL
    step = 1e-5

    def functions(v: Any) -> Any:
        return one.features(v[None])[0] @ one.coef  # type: ignore[operator]

    g = np.empty((N, T, D))
    for i in range(N):
        for j in range(D):
            h = step * np.eye(D)[j]
            g[i, :, j] = (functions(u[i] + h) - functions(u[i] - h)) / (2 * step)
    w, x = W if weighted else np.ones(N), (X - MEAN) / SCALE
    mean = np.einsum("n,ntd->td", w, g) / w.sum()
    expected = sum(np.einsum("n,nd,ne->de", w, g[:, t] - mean[t], g[:, t] - mean[t]) for t in range(T)) / w.sum()
    centred = x - w @ x / w.sum()
    covariance = np.einsum("n,nd,ne->de", w, centred, centred) / w.sum()
    sums = total(one, rows(weighted=weighted))
    pick = (lambda a: a) if full else np.diagonal
    np.testing.assert_allclose(sums.average, pick(expected), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(sums.covariance, pick(covariance), rtol=1e-10, atol=1e-12)


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, N), max_size=4), full=st.booleans())
def test_any_cut_gives_the_same_sums_and_a_part_can_be_subtracted(cuts: list[int], full: bool) -> None:
    one, ends = summand(full), [0, *sorted(cuts), N]
    parts = [rows(a, b) for a, b in itertools.pairwise(ends) if b > a]
    whole, added = total(one, rows()), sum((total(one, part) for part in parts[1:]), total(one, parts[0]))
    rest = whole - total(one, parts[0])
    others = total(one, *parts[1:])
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(added, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(getattr(rest, name), getattr(others, name), rtol=1e-8, atol=1e-8)
    assert GradientSums.of_arrays(whole.arrays()).arrays().keys() == set(ARRAYS)


def test_pieces_of_a_block_change_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = total(summand(True), rows())
    monkeypatch.setattr(gradients, "PIECE_BYTES", 8 * T * D * 10)
    np.testing.assert_allclose(total(summand(True), rows()).outer, whole.outer, rtol=1e-12)


@pytest.mark.parametrize("metric", [FULL, np.array([0.5, 2.0, 1.0])])
def test_the_bytes_are_those_of_the_arrays(metric: Any) -> None:
    for full in (True, False):
        sums = summand(full, metric).zero()
        assert sum(array.nbytes for array in sums.arrays().values()) == GradientSums.bytes_of(T, D, full)


@pytest.mark.parametrize("metric", [FULL @ FULL.T, np.array([0.5, 2.0, 1.0])])
def test_the_next_metric_is_the_root_of_the_outer_product_in_scaled_inputs(metric: Any) -> None:
    sums = total(summand(True, metric), rows())
    following = next_metric(metric, sums)
    p = np.diag(metric) if metric.ndim == 1 else metric
    outer = p @ sums.average @ p.T
    square = following @ following
    np.testing.assert_allclose(square / np.trace(square), outer / np.trace(outer), atol=1e-12)
    np.testing.assert_allclose(following, following.T, atol=1e-12)
    assert np.linalg.eigvalsh(following).min() >= -1e-12
    lengths = np.einsum("n,nd,nd->n", W, *2 * [((X - np.average(X, axis=0, weights=W)) / SCALE) @ following])
    assert lengths.sum() / W.sum() == pytest.approx(1.0)


def test_the_next_diagonal_metric_stretches_each_column_by_the_root_of_its_mean_square() -> None:
    metric = np.array([0.5, 2.0, 1.0])
    full, sums = total(summand(True, metric), rows()), total(summand(False, metric), rows())
    following = next_metric(metric, sums)
    expected = metric * np.sqrt(np.diagonal(full.average))
    np.testing.assert_allclose(following / following[0], expected / expected[0], rtol=1e-10)
    centred = (X - np.average(X, axis=0, weights=W)) / SCALE
    assert W @ ((centred * following) ** 2).sum(axis=1) / W.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("full", [True, False])
def test_no_metric_follows_from_gradients_that_do_not_vary(full: bool) -> None:
    sums = total(summand(full), rows())
    sums.outer, sums.gradient = np.zeros_like(sums.outer), np.zeros_like(sums.gradient)
    assert next_metric(FULL if full else np.ones(D), sums) is None
