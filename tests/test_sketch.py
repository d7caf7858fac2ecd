"""Sketches, against dense matrices, explicit outer products and their own expectation."""

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import circular_convolution, count_sketch_matrix

from ntkdist import draws
from ntkdist.sketch import count_sketch, draw_count_sketch, tensor_sketch

SHAPES = [(1, 1), (1, 4), (5, 3), (7, 8), (40, 16), (3, 500)]
F8 = NDArray[np.float64]


def described_matrix(sketch: dict[str, NDArray[np.int64]], d: int, m: int) -> F8:
    """The (d, m) matrix that ``order``, ``starts``, ``buckets`` and ``signs`` describe."""
    matrix = np.zeros((d, m))
    ends = [*sketch["starts"][1:], d]
    for bucket, start, end in zip(sketch["buckets"], sketch["starts"], ends, strict=True):
        for place in range(start, end):
            matrix[sketch["order"][place], bucket] = sketch["signs"][place]
    return matrix


@pytest.mark.parametrize(("d", "m"), SHAPES)
def test_count_sketch_is_a_matrix_with_one_sign_in_a_row(d: int, m: int) -> None:
    x = np.random.default_rng(0).standard_normal((6, d))
    sketch = draw_count_sketch(d, m, 3, 1, 2)
    matrix = described_matrix(sketch, d, m)
    np.testing.assert_array_equal(np.abs(matrix).sum(1), 1)
    np.testing.assert_array_equal(matrix, count_sketch_matrix(d, m, 3, 1, 2))
    np.testing.assert_allclose(count_sketch(sketch, x, m), x @ matrix, atol=1e-14)


def test_count_sketch_of_no_rows() -> None:
    assert count_sketch(draw_count_sketch(5, 3, 0, 0, 0), np.empty((0, 5)), 3).shape == (0, 3)


def test_count_sketches_differ_by_seed_layer_and_role() -> None:
    names = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    matrices = [count_sketch_matrix(30, 10, *name) for name in names]
    assert len({m.tobytes() for m in matrices}) == len(names)


@pytest.mark.parametrize(("p", "q", "m"), [(1, 1, 1), (3, 5, 8), (6, 4, 7), (20, 11, 16), (2, 30, 33)])
def test_tensor_sketch_is_a_circular_convolution(p: int, q: int, m: int) -> None:
    """Even and odd widths; and the convolution is the sketch of the outer product, coordinate by coordinate."""
    rng = np.random.default_rng(p)
    x, y = rng.standard_normal((4, p)), rng.standard_normal((4, q))
    out = tensor_sketch(draw_count_sketch(p, m, 0, 0, 2), x, draw_count_sketch(q, m, 0, 0, 3), y, m)
    left, right = count_sketch_matrix(p, m, 0, 0, 2), count_sketch_matrix(q, m, 0, 0, 3)
    convolved = [circular_convolution(a, b) for a, b in zip(x @ left, y @ right, strict=True)]
    np.testing.assert_allclose(out, convolved, atol=1e-12)
    # x ⊗ y's coordinate (i, j) goes to bucket h(i) + h'(j) mod m with sign s(i)s'(j).
    explicit = np.zeros((p * q, m))
    for i in range(p):
        for j in range(q):
            a, b = np.flatnonzero(left[i])[0], np.flatnonzero(right[j])[0]
            explicit[i * q + j, (a + b) % m] = left[i, a] * right[j, b]
    outer = np.einsum("ni,nj->nij", x, y).reshape(4, -1)
    np.testing.assert_allclose(out, outer @ explicit, atol=1e-12)


def z_scores(estimates: F8, exact: F8) -> F8:
    """Distance of the mean over the first axis from the truth, in standard errors."""
    return np.abs(estimates.mean(0) - exact) / (estimates.std(0) / np.sqrt(len(estimates)))


@pytest.mark.parametrize("m", [2, 8, 33])
def test_count_sketch_is_unbiased_with_its_variance(m: int) -> None:
    """Var⟨Sx, Sy⟩ = (‖x‖²‖y‖² + ⟨x, y⟩² − 2Σxᵢ²yᵢ²)/m, over 4000 seeds."""
    x = np.random.default_rng(0).standard_normal((3, 6))
    seeds = 4000
    sketches = [count_sketch(draw_count_sketch(6, m, seed, 0, 0), x, m) for seed in range(seeds)]
    estimates = np.array([s @ s.T for s in sketches])
    assert z_scores(estimates, x @ x.T).max() < 4
    n2 = (x**2).sum(1)
    exact = (np.outer(n2, n2) + (x @ x.T) ** 2 - 2 * (x**2) @ (x**2).T) / m
    np.testing.assert_allclose(estimates.var(0), exact, rtol=0.2)


@pytest.mark.parametrize("m", [4, 16, 37])
def test_tensor_sketch_is_unbiased_within_its_variance_bound(m: int) -> None:
    """Var ≤ (3² − 1)/m ‖x‖²‖x'‖²‖y‖²‖y'‖² (Pham, Pagh, 2013), over 4000 seeds; and no better than a tenth of it."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((3, 6)), rng.standard_normal((3, 5))
    estimates = []
    for seed in range(4000):
        z = tensor_sketch(draw_count_sketch(6, m, seed, 0, 2), x, draw_count_sketch(5, m, seed, 0, 3), y, m)
        estimates.append(z @ z.T)
    assert z_scores(np.array(estimates), (x @ x.T) * (y @ y.T)).max() < 4
    n2 = (x**2).sum(1) * (y**2).sum(1)
    relative = np.var(estimates, axis=0) * m / np.outer(n2, n2)
    assert relative.max() <= 8
    assert relative.max() >= 0.8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_in_is_dtype_out(dtype: type) -> None:
    """Also in the transforms, where a wider type would double the memory."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 9)), rng.standard_normal((5, 7))
    s, t = draw_count_sketch(9, 8, 0, 0, 2), draw_count_sketch(7, 8, 0, 0, 3)
    cast = [{k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in a.items()} for a in (s, t)]
    narrow = tensor_sketch(cast[0], x.astype(dtype), cast[1], y.astype(dtype), 8)
    assert count_sketch(cast[0], x.astype(dtype), 8).dtype == dtype
    assert narrow.dtype == dtype
    np.testing.assert_allclose(narrow, tensor_sketch(s, x, t, y, 8), atol=1e-5)


def test_buckets_and_signs_have_streams_of_their_own() -> None:
    """Were they from one stream, a bucket would tell its sign."""
    bucket, sign = draws.integers(2, 20_000, 0, 0, 0, 0), draws.signs(20_000, 0, 0, 0, 1)
    assert abs(((2 * bucket - 1) * sign).mean()) < 4 / np.sqrt(20_000)
