"""Sketches, against dense matrices, explicit outer products and their own expectation."""

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import circular_convolution, count_sketch_matrix, srht_matrix
from scipy.linalg import hadamard as oracle
from scipy.sparse import csr_array

from ntkdist import random
from ntkdist.features.sketch import (
    WIDE,
    count_sketch,
    draw_buckets,
    draw_count_sketch,
    draw_factor,
    draw_poly,
    draw_srht,
    factor,
    hadamard,
    mix,
    poly_sketch,
    sparse_count_sketch,
    srht,
    steps,
    tensor_sketch,
)

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


@pytest.mark.slow
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
    bucket, sign = random.integers(2, 20_000, 0, 0, 0, 0), random.signs(20_000, 0, 0, 0, 1)
    assert abs(((2 * bucket - 1) * sign).mean()) < 4 / np.sqrt(20_000)


@pytest.mark.parametrize("w", [1, 2, 4, 32, 64, 512, 2048])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mix_is_a_product_with_the_hadamard_matrix(w: int, dtype: type) -> None:
    x = np.random.default_rng(w).standard_normal((2, 3, w)).astype(dtype)
    assert mix(x).dtype == dtype
    np.testing.assert_allclose(mix(x), x @ oracle(w), atol=1e-4 if dtype == np.float32 else 1e-11)
    np.testing.assert_array_equal(hadamard(w), oracle(w))


@pytest.mark.parametrize(
    ("d", "m"), [(1, 1), (1, 3), (5, 8), (5, 3), (6, 21), (90, 40), (130, 7), (130, 600), (300, 512)]
)
def test_srht_is_signs_hadamard_and_some_rows(d: int, m: int) -> None:
    """As a dense matrix (short rows) and by the fast transform (long ones); whole transforms keep all lengths."""
    x = np.random.default_rng(0).standard_normal((4, d))
    s = draw_srht(d, m, 3, 1, 2, 2.0)
    assert ("matrix" in s) == (d <= 128)
    np.testing.assert_allclose(srht(s, x), 2 * x @ srht_matrix(d, m, 3, 1, 2), atol=1e-12)
    if m == 512:
        np.testing.assert_allclose(srht(s, x) @ srht(s, x).T, 4 * x @ x.T, atol=1e-10)


def test_a_sketch_of_sparse_rows_is_a_matrix_with_one_sign_in_a_row() -> None:
    d, m = 40, 17
    s = draw_buckets(d, m, 3, 1, 2, 1.5)
    matrix = sparse_count_sketch(s, csr_array(np.eye(d)), m)
    assert ((matrix != 0).sum(1) == 1).all()
    np.testing.assert_allclose(np.abs(matrix[matrix != 0]), 1.5, rtol=1e-15)
    x = np.random.default_rng(0).standard_normal((6, d)) * (np.random.default_rng(1).random((6, d)) < 0.3)
    x[2] = 0
    np.testing.assert_allclose(sparse_count_sketch(s, csr_array(x), m), x @ matrix, atol=1e-14)
    assert sparse_count_sketch(s, csr_array(x.astype(np.float32)), m).dtype == np.float64  # as signs of float64 make it


def products(kind: str, x: F8, m: int, seeds: int) -> tuple[F8, F8]:
    """Inner products of sketches of x, of many seeds, and those that they estimate."""
    d, found = x.shape[1], []
    for seed in range(seeds):
        if kind == "srht":
            z = srht(draw_srht(d, m, seed, 0, 0), x)
        elif kind == "sparse":
            z = sparse_count_sketch(draw_buckets(d, m, seed, 0, 0), csr_array(x), m)
        else:
            z = factor(draw_factor(d, m, seed, 0, 0, 1.0, True), csr_array(x), m)
        found.append(z @ z.T)
    return np.array(found), x @ x.T


@pytest.mark.parametrize(("kind", "least", "most"), [("srht", 0, 1e-14), ("sparse", 0.2, 0.3), ("hashed", 0.2, 0.3)])
def test_sketches_are_unbiased_and_their_error_falls_like_a_root(kind: str, least: float, most: float) -> None:
    """Means over 1500 seeds within four standard errors; 16 times the columns, a quarter of the error.

    A whole orthogonal transform errs in nothing.
    """
    x = np.random.default_rng(1).standard_normal((4, 11))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    errors = []
    for m in (7, 112):
        found, exact = products(kind, x, m, 1500 if m == 7 else 300)
        if m == 7:
            assert z_scores(found, exact).max() < 4
        errors.append(np.sqrt(((found - exact) ** 2).mean()))
    assert least <= errors[1] / errors[0] < most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "degrees"), [(1, (2,)), (1, (2, 3, 4, 6, 8)), (2, (3, 7)), (3, (2, 3, 4, 6, 8))], ids=str
)
def test_chain_is_unbiased_for_every_power(dims: int, degrees: tuple[int, ...]) -> None:
    """From exact powers up to ``dims``, also where wanted degrees leave gaps; over 700 seeds."""
    wanted = [j for j in degrees if j > dims]
    x = np.random.default_rng(2).standard_normal((3, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[1] = 0.8 * x[0] + 0.6 * (x[1] - (x[0] @ x[1]) * x[0])
    powers = [x, *(np.stack([np.kron(r, np.kron(r, r) if j == 3 else r) for r in x]) for j in (2, 3))][:dims]
    w, columns = 16, {j: 5 + j for j in wanted}
    chain = steps(dims, columns, w)
    found: dict[int, list[F8]] = {j: [] for j in wanted}
    for seed in range(700):
        s = draw_poly([p.shape[1] for p in powers], [1.0] * dims, chain, w, seed)
        for j, z in poly_sketch(s, powers, chain, w):
            if j in found:
                part = z[:, : columns[j]] * np.sqrt(w / columns[j])
                found[j].append(part @ part.T)
    for j, each in found.items():
        assert z_scores(np.array(each), (x @ x.T) ** j).max() < 4.5, j


def test_variance_of_a_chain_grows_with_the_degree_not_exponentially() -> None:
    """Of ⟨P, P⟩ of a unit row, whose variance is (3ʲ − 1)/m where nothing mixes in between."""
    x, w, degree = np.full((1, 8), 8**-0.5), 256, 8
    chain = steps(1, dict.fromkeys(range(2, degree + 1), w), w)
    found: dict[int, list[float]] = {j: [] for j in range(2, degree + 1)}
    for seed in range(400):
        s = draw_poly([8], [1.0], chain, w, seed)
        for j, z in poly_sketch(s, [x], chain, w):
            found[j].append(float(z[0] @ z[0]))
    variance = {j: np.var(v) * w for j, v in found.items()}
    assert 2 < variance[2] < 16
    assert variance[8] < 10 * variance[2]
    assert variance[8] < (3**8 - 1) / 10


def test_steps_of_a_chain() -> None:
    assert [tuple(s) for s in steps(1, {2: 10, 4: 5}, 16)] == [(2, 1, 16), (3, 1, 16), (4, 1, 5)]
    of_two = [(3, 1, 7), (4, 2, 16), (6, 2, 16), (7, 1, 9), (8, 2, 8)]
    assert [tuple(s) for s in steps(2, {3: 7, 7: 9, 8: 8}, 16)] == of_two
    assert [tuple(s) for s in steps(4, {5: 3, 8: 4}, 8)] == [(5, 1, 3), (8, 4, 4)]
    assert WIDE >= 128
