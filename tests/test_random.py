"""Random streams: the name of a stream alone decides its numbers, on every machine and in every version."""

import numpy as np
import pytest
from reference import gram_schmidt
from scipy import stats

from ntkdist import random

# The first numbers of some streams (seed, layer, role, block): a change here changes every saved model.
GOLDEN = {
    (0, 0, 0, 0): ([0.9060999392139949, 0.2587418996168541], [1.3171148753267614, -0.6472289162743131], [906, 258]),
    (0, 0, 0, 1): ([0.2514578258088166, 0.12344679536006231], [-0.6699092360745011, -1.157927581566497], [251, 123]),
    (0, 0, 1, 0): ([0.003799723948467837, 0.1257341340550292], [-2.6693664896904488, -1.1467903750040143], [3, 125]),
    (0, 1, 0, 0): ([0.3113631743372899, 0.3633243855002727], [-0.49199009079511075, -0.3495868635319538], [311, 363]),
    (1, 0, 0, 0): ([0.005955125846738629, 0.7004754854288527], [-2.5147923294133068, 0.5257685491130244], [5, 700]),
    (2**40, 3, 4, 17): (
        [0.5656862591155604, 0.043228518952366346],
        [0.1654021242835239, -1.714390468319698],
        [565, 43],
    ),
}
STREAM = (7, 1, 2)


@pytest.mark.parametrize("stream", GOLDEN)
def test_streams_are_what_they_have_always_been(stream: tuple[int, int, int, int]) -> None:
    uniforms, normals, integers = GOLDEN[stream]
    assert random.uniforms(2, *stream).tolist() == uniforms
    np.testing.assert_allclose(random.normals((2,), *stream), normals, rtol=1e-14)
    assert random.integers(1000, 2, *stream).tolist() == integers
    assert random.signs(2, *stream).tolist() == [-1 if u < 0.5 else 1 for u in uniforms]


def test_directions_are_what_they_have_always_been() -> None:
    v = [[-0.7375280445291756, -0.6753165061902237, -0.675316679041092]]
    np.testing.assert_allclose(random.directions(2, 3, 5, 1, 2)[:1], v, rtol=1e-13)
    assert random.directions(1, 6, 5, 1, 2).tolist() == [[-1, -1, -1, 1, -1, 1]]


def test_a_stream_is_its_name_and_nothing_else() -> None:
    """Numbers stay the same if drawn again, after others, or with more; other names give other numbers."""
    first = random.uniforms(50, 7, 1, 2, 3)
    np.random.default_rng(0).random(10)
    names = [(7, 1, 2, 4), (7, 1, 3, 3), (7, 2, 2, 3), (8, 1, 2, 3), (7, 2, 1, 3)]
    others = [random.uniforms(50, *name) for name in names]
    np.testing.assert_array_equal(random.uniforms(50, 7, 1, 2, 3), first)
    np.testing.assert_array_equal(random.uniforms(500, 7, 1, 2, 3)[:50], first)
    assert all(np.abs(np.corrcoef(first, other)[0, 1]) < 0.6 for other in others)
    assert not any(np.isin(first, other).any() for other in others)


def test_uniforms_are_inside_and_uniform() -> None:
    u = random.uniforms(200_000, *STREAM)
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("word", [0, 2**64 - 1], ids=["least", "greatest"])
def test_no_word_gives_zero_or_one(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extreme words do not either, so that no normal is infinite."""

    class Extreme:
        def __init__(self, seed: object) -> None:
            pass

        def random_raw(self, count: int) -> np.ndarray:
            return np.full(count, word, np.uint64)

    monkeypatch.setattr(np.random, "Philox", Extreme)
    assert 0 < random.uniforms(1, 0, 0, 0)[0] < 1
    assert np.isfinite(random.normals((1,), 0, 0, 0)).all()
    for high in (1, 3, 10, 1025, 2**31 + 1):
        assert random.integers(high, 1, 0, 0, 0)[0] == (0 if word == 0 else high - 1)


def test_normals_are_normal() -> None:
    """Four moments, each within four standard errors, and the whole distribution."""
    z = random.normals((500, 400), *STREAM)
    assert z.shape == (500, 400)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - moment) < 4 * np.sqrt(variance / z.size)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("high", [1, 2, 7, 1000])
def test_integers_fill_their_range_evenly(high: int) -> None:
    counts = np.bincount(random.integers(high, 100 * high + 10_000, *STREAM), minlength=high)
    assert len(counts) == high
    assert high == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_signs_are_balanced_and_independent() -> None:
    s = random.signs(100_000, *STREAM)
    assert set(s) == {-1.0, 1.0}
    assert abs(s.mean()) < 4 / np.sqrt(len(s))
    assert abs((s[1:] * s[:-1]).mean()) < 4 / np.sqrt(len(s))


@pytest.mark.parametrize(("d", "m"), [(1, 5), (2, 7), (5, 3), (9, 40), (40, 40)])
def test_directions_are_orthonormal_blocks(d: int, m: int) -> None:
    """Blocks are Gram–Schmidt of normals, with diag(R) > 0; otherwise signs would depend on the QR of the library."""
    v = random.directions(d, m, *STREAM)
    assert v.shape == (d, m)
    assert v.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(v, axis=0), 1, rtol=1e-14)
    for block, start in enumerate(range(0, m, d)):
        q = v[:, start : start + d]
        np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-14)
        expected = gram_schmidt(random.normals((d, d), *STREAM, block))[:, : q.shape[1]]
        np.testing.assert_allclose(q, expected, atol=1e-10)


@pytest.mark.parametrize("d", [1, 3, 8])
def test_fewer_directions_are_a_prefix_of_more(d: int) -> None:
    many = random.directions(d, 30, *STREAM)
    for m in (1, 2, 7, 8, 9, 24, 29):
        np.testing.assert_array_equal(random.directions(d, m, *STREAM), many[:, :m])


@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_directions_are_uniform_on_the_sphere(d: int) -> None:
    """Every column of a block over 3000 seeds: mean 0, second moment I/d, and fourth moment 3/(d(d + 2))."""
    seeds = 3000
    v = np.array([random.directions(d, d, seed, 0, 0) for seed in range(seeds)])  # (seeds, d, columns)
    error = np.sqrt(seeds)
    assert np.abs(v.mean(0)).max() < 4.5 / np.sqrt(d) / error
    for column in range(d):
        second = v[:, :, column].T @ v[:, :, column] / seeds
        assert np.abs(second - np.eye(d) / d).max() < 4.5 * np.sqrt(2) / d / error + 1e-12
    fourth = (v**4).mean(0)
    assert np.abs(fourth - 3 / (d * (d + 2))).max() < 4.5 * np.sqrt(96) / d**2 / error + 1e-12
