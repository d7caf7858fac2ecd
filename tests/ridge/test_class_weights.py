"""Balanced classes beside scikit-learn's, and yardsticks that see the folds and weights of a fit."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from folds import FEATURES, GROUPS, job_on
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

import ntkdist as nd
from ntkdist.report.baseline_rows import table_of
from ntkdist.report.baselines import ExactRidge


@pytest.fixture
def uneven() -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.int64]]:
    """Inputs, three classes of about 70, 240 and 590 rows, and weights from 0 to 3."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((900, 3))
    names = np.array(["rare", "seldom", "usual"])[np.digitize(np.abs(x[:, 0]) + x[:, 1], [-0.8, 0.2])]
    return x, names, rng.integers(0, 4, 900)


@pytest.mark.parametrize("weighted", [False, True])
def test_balanced_classes_are_scikit_learns(make_dataset: Any, uneven: Any, weighted: bool) -> None:
    x, names, counts = uneven
    store = make_dataset(x, names, weights=counts)
    job = job_on(store, alphas=(1.0,), weight="weight" if weighted else "")
    job = msgspec.structs.replace(job, class_weight="balanced")
    result = nd.fit(job)
    own = counts.astype(float) if weighted else np.ones(900)
    each = compute_class_weight("balanced", classes=np.unique(names), y=np.repeat(names, counts if weighted else 1))
    np.testing.assert_allclose(result.model.preprocessing.class_weight, each, rtol=1e-12)
    w = own * each[np.unique(names, return_inverse=True)[1]]
    if not weighted:
        np.testing.assert_allclose(w, compute_sample_weight("balanced", names))
    mean = np.average(x, axis=0, weights=own)
    z = FEATURES((x - mean) / np.sqrt(np.average((x - mean) ** 2, axis=0, weights=own)))
    onehot = (names[:, None] == np.unique(names)).astype(float)
    ridge = Ridge(alpha=1.0, solver="cholesky").fit(z, onehot, sample_weight=w)
    np.testing.assert_allclose(result.model(x), ridge.predict(z), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(result.equations.total.weight, w.sum())
    assert result.cv is not None
    fold = np.arange(900) // nd.Dataset(store).layout().rows_per_partition % 5
    ridge = Ridge(alpha=1.0, solver="cholesky").fit(z[fold != 2], onehot[fold != 2], sample_weight=w[fold != 2])
    mse = np.average((ridge.predict(z[fold == 2]) - onehot[fold == 2]) ** 2, axis=0, weights=w[fold == 2])
    np.testing.assert_allclose(result.cv.mse[0, 2], mse, rtol=1e-7)
    plain = nd.evaluate(result.model, store)
    assert plain["accuracy"] == pytest.approx((result.model.predict(x) == names).mean())  # metrics do not weigh classes


@pytest.mark.slow
def test_weights_of_classes_are_saved_and_reused(make_dataset: Any, uneven: Any, tmp_path: Path) -> None:
    x, names, _ = uneven
    job = job_on(make_dataset(x, names), {"folds": 2}, (1.0,))
    balanced = msgspec.structs.replace(job, class_weight="balanced")
    first = nd.fit(balanced, out=str(tmp_path / "run"))
    nd.fit(job, out=str(tmp_path / "plain"))
    loaded = nd.load(str(tmp_path / "run" / "model.zarr")).preprocessing
    assert loaded.class_weight == first.model.preprocessing.class_weight
    assert loaded.digest() == first.model.preprocessing.digest()
    plain = nd.load(str(tmp_path / "plain" / "model.zarr")).preprocessing
    assert plain.class_weight == ()
    assert loaded.digest() != plain.digest()
    np.testing.assert_array_equal(loaded.x_scale, plain.x_scale)
    part = make_dataset(x[:400], names[:400], name="part")
    reuse = nd.Preprocess(reuse=str(tmp_path / "run"))
    second = nd.fit(msgspec.structs.replace(balanced, dataset=nd.Dataset(part), preprocess=reuse))
    assert second.model.preprocessing.class_weight == loaded.class_weight
    assert (first.equations + second.equations).total.weight == pytest.approx(
        first.equations.total.weight + second.equations.total.weight
    )
    with pytest.raises(nd.DataError, match=r"run weighs classes, unlike this job, .*; set class_weight"):
        nd.fit(msgspec.structs.replace(job, preprocess=reuse))
    reuse = nd.Preprocess(reuse=str(tmp_path / "plain"))
    with pytest.raises(nd.DataError, match=r"does not weigh classes, unlike this job, .*; leave out class_weight"):
        nd.fit(msgspec.structs.replace(balanced, preprocess=reuse))


# yardsticks


def test_yardsticks_see_the_same_folds_and_weights(make_dataset: Any, uneven: Any) -> None:
    """The exact ridge with the kernel of the features is the fit of the features, at its penalty."""
    x, names, _ = uneven
    x, names = x[:150], names[:150]
    store = make_dataset(x, names, groups=GROUPS[:150], holdout=np.arange(150) % 4 == 0)
    for dealt in ({"groups": "groups"}, {"holdout": "holdout"}):
        job = job_on(store, alphas="auto", **dealt)
        job = msgspec.structs.replace(job, class_weight="balanced", alphas_per_row=(1e-2,))
        result = nd.fit(job)
        pre, plan = result.model.preprocessing, nd.plan(job)
        exact = ExactRidge(lambda a, b: FEATURES(a) @ FEATURES(b).T, table_of(plan, pre), pre)
        exact.alpha_per_row = 1e-2
        found = exact.out_of_fold()
        assert result.cv is not None
        assert found.scored == result.cv.scored
        np.testing.assert_allclose(found.mse, result.cv.mse, rtol=1e-6)
        np.testing.assert_allclose(found.weights, result.cv.weights, rtol=1e-9)
