"""Comparing: kernel errors against dense NumPy, yardsticks against scikit-learn, and files that appear whole."""

import dataclasses
import json
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from command_line import Command, assert_one_line, assert_refused, columns, write_csv, write_job
from comparisons import NTK, ZONAL, job
from folds import scaled

import ntkdist as nd
from ntkdist.kernels.error import SpectralError, frobenius_error, gram_of
from ntkdist.report import comparison_plots
from ntkdist.report.comparison import Comparison, Row
from ntkdist.report.comparison_plots import _apart
from ntkdist.report.measure import OTHER_SEED, WARM_ROWS

pytestmark = pytest.mark.usefixtures("few_rounds_on_one_thread")


# The errors of a kernel.


def kernels(n: int = 60) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 4))
    return nd.NTK(2)(x), gram_of(NTK(x))


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 100.0])
def test_the_spectral_error_satisfies_both_inequalities_and_no_smaller_one_does(alpha: float) -> None:
    exact, approximate = kernels()
    eps = SpectralError(exact, alpha)(approximate)
    ridge = alpha * np.eye(len(exact))

    def slack(e: float) -> float:
        above = (1 + e) * (exact + ridge) - (approximate + ridge)
        below = (approximate + ridge) - (1 - e) * (exact + ridge)
        return min(np.linalg.eigvalsh(above).min(), np.linalg.eigvalsh(below).min())

    assert slack(eps * (1 + 1e-6)) > 0
    assert slack(eps * (1 - 1e-6)) < 0
    values, q = np.linalg.eigh(exact + ridge)
    root = q / np.sqrt(values) @ q.T
    np.testing.assert_allclose(eps, np.abs(np.linalg.eigvalsh(root @ (approximate - exact) @ root)).max(), rtol=1e-6)


def test_errors_of_kernels_that_agree_or_cannot_be_compared() -> None:
    exact, approximate = kernels()
    assert SpectralError(exact, 0.1)(exact) == 0 == frobenius_error(exact, exact)
    np.testing.assert_allclose(
        frobenius_error(approximate, exact), np.sqrt(((approximate - exact) ** 2).sum() / (exact**2).sum())
    )
    ones = np.ones((5, 5))
    assert SpectralError(ones, 0.0)(2 * ones) == np.inf  # no ε is found where K + αI has no inverse in float64
    np.testing.assert_allclose(SpectralError(ones, 1.0)(2 * ones), 5 / 6)
    assert frobenius_error(0 * ones, 0 * ones) == 0
    assert frobenius_error(ones, 0 * ones) == np.inf


@pytest.mark.slow
def test_kernel_errors_are_those_of_dense_numpy_for_every_redraw(make_dataset: Any, table: Any) -> None:
    x, y = table[0][:300], table[1][:300]
    store = make_dataset(x, y)
    found = nd.compare(store, [job(NTK), job(ZONAL)], seeds=3, sample=300, baselines=False)
    for row, features in zip(found.models, (NTK, ZONAL), strict=True):
        u = scaled(x)
        exact = features.kernel(u)
        spectral = SpectralError(exact, row.alpha_per_row * 300)
        for k in range(3):
            z = msgspec.structs.replace(features, seed=features.seed + k)(u)
            np.testing.assert_allclose(row.frobenius[k], np.linalg.norm(z @ z.T - exact) / np.linalg.norm(exact))
            np.testing.assert_allclose(row.spectral[k], spectral(z @ z.T), rtol=1e-6)
        assert len(set(row.frobenius)) == 3
        fitted = nd.fit(job(features, store))
        assert row.cv_rmse == fitted.cv.rmse
        assert row.alpha_per_row == pytest.approx(fitted.model.alpha[0] / 300)
        assert min(row.feature_seconds, row.gram_seconds, row.fit_seconds) > 0
        assert row.model_bytes > 1000
    # directions (5 + 1) × 29 for |t| and as many for sgn; both in float64
    assert found.models[0].drawn_bytes == sum(a.nbytes for a in NTK.draw((5,)).values())


def test_maps_that_learn_are_learnt_again_for_every_redraw(make_dataset: Any, table: Any) -> None:
    """Each seed has landmarks of its own, and with all rows as landmarks nothing is missing."""
    store = make_dataset(table[0][:300], table[1][:300])
    some, every = nd.Nystrom(60, nd.NTK(2, 1.0)), nd.Nystrom(300, nd.NTK(2, 1.0))
    few, all_rows = nd.compare(store, [job(some), job(every)], seeds=2, sample=200, baselines=False).models
    assert len(set(few.frobenius)) == 2
    assert min(few.frobenius) > 1e-3 > 1e-8 > max(all_rows.frobenius)


@pytest.mark.slow
def test_a_sample_is_the_same_for_all_jobs_and_curves_have_every_m(make_dataset: Any, table: Any) -> None:
    store = make_dataset(table[0][:300], table[1][:300])
    jobs = [job(nd.ZonalFeatures(50)), job(nd.ZonalFeatures(50)), job(nd.Linear(5))]
    found = nd.compare(store, jobs, seeds=2, sample=100, components=(32, 256), baselines=False)
    assert [(row.name, row.n_components) for row in found.models] == [
        *(("ZonalFeatures 1", 32), ("ZonalFeatures 1", 256), ("ZonalFeatures 2", 32), ("ZonalFeatures 2", 256)),
        ("Linear", 5),
    ]
    first, more, again, _, linear = found.models
    assert first.frobenius == again.frobenius
    assert np.mean(more.frobenius) < np.mean(first.frobenius) / 2
    assert linear.frobenius == pytest.approx((0,), abs=1e-6)  # exact, and of no seed
    assert found.sample_rows == 100


# What is written and printed.


def row(name: str, m: int | None, errors: tuple[float, ...], **changes: Any) -> Row:
    made = Row(name, "X", m, errors, errors, 1e-4, 0.5, 0.01, {"rmse": 0.4321}, 1.0, 2.0, 3.0, 900, 100)
    return dataclasses.replace(made, **changes)


FOUND = Comparison(
    "d.zarr", 600, "t.zarr", False, 200, 3, (
        row("zonal", 64, (0.2, 0.21, 0.22)), row("zonal", 256, (0.1, 0.11, 0.12), test={"rmse": 0.3456}),
        row("one", 64, (0.2, 0.3)), row("constant", 64, (np.inf,)), row("linear", 5, (1e-9,), kind="Linear"),
        row("exact kernel", None, ()), row("boosted trees", None, (), cv_rmse=None),
    ), ("a note",),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("found", [FOUND, dataclasses.replace(FOUND, test="")], ids=["test", "cv"])
def test_everything_is_written_whole(found: Comparison, tmp_path: Path) -> None:
    if not found.test:
        found = dataclasses.replace(found, models=tuple(dataclasses.replace(each, test={}) for each in found.models))
    comparison_plots.write(found, str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("compare.json", "compare.md"),
        *(f"error_against_{what}.{kind}" for what in ("m", "seconds") for kind in ("png", "svg")),
    ]
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]
    read = json.loads((tmp_path / "out/compare.json").read_text())
    assert read["rows"] == 600
    assert [model["name"] for model in read["models"]] == [each.name for each in found.models]
    zonal = read["models"][0]
    assert zonal["frobenius"] == list(found.models[0].frobenius)
    assert zonal["frobenius_mean"] == pytest.approx(np.mean(zonal["frobenius"]))
    assert zonal["frobenius_std"] == pytest.approx(np.std(zonal["frobenius"], ddof=1))
    said = (tmp_path / "out/compare.md").read_text()
    for each in found.models:
        assert said.count(f"| {each.name} |") == 2 * sum(each.name == other.name for other in found.models)
    assert ("0.3456" in said) == bool(found.test)
    assert "![error against m](error_against_m.svg)" in said
    for name in ("m", "seconds"):
        assert (tmp_path / f"out/error_against_{name}.png").read_bytes().startswith(b"\x89PNG")
        root = xml.etree.ElementTree.parse(tmp_path / f"out/error_against_{name}.svg").getroot()
        assert root.tag.endswith("svg")
    with pytest.raises(nd.StoreError, match="exists already"):
        comparison_plots.write(found, str(tmp_path / "out"))


def test_a_drawing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(comparison_plots, "_draw", full)
    with pytest.raises(nd.StoreError, match=r"deep/out cannot be written \(no space left\)"):
        comparison_plots.write(FOUND, str(tmp_path / "deep" / "out"))
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_text_fits_a_terminal_and_odd_numbers_have_words() -> None:
    odd = Row("a name that is far too long for a table of eighty columns", "X", 1_000_000, (1.23456e-5, 1.3e-5),
              (np.inf,), 1e-9, 123456.7, 1.0, {"rmse": 1e-7}, 1e-3, 123.4567, 1e6, 123_456_789, 10**10)  # fmt: skip
    held = Row("exact kernel", "ExactRidge", None, (), (), None, None, None, {"rmse": 2.0}, None, None, 1.0, 900, 0)
    found = Comparison("d.zarr", 10, "t.zarr", False, 5, 2, (odd, held), ("a note",))
    text = found.to_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("a name that", "…", "1,000,000", "∞", "1.235e+05", "123 MB", "10 GB", "900 B", "–", "* a note."):
        assert words in text


# The command.


@pytest.mark.slow
def test_the_command_prints_and_writes(command: Command) -> None:
    write_csv("train.csv", columns(), "a", "b", "c", "y")
    command("convert", "train.csv", "train.zarr", "--target", "y")
    Path("ours.toml").write_text('[features]\ntype = "ZonalFeatures"\nn_components = 64\n')  # no dataset of its own
    theirs = write_job("theirs.toml", "absent.zarr")
    args = ("compare", "train.zarr", "ours.toml", theirs, "--seeds", "2", "--sample", "60", "--components", "32")
    found = command(*args, "--test", "train.zarr", "--out", "out", "--json")
    assert found.exit_code == 0, found.output
    read = json.loads(found.stdout)
    assert read == json.loads(Path("out/compare.json").read_text())
    assert [(m["name"], m["n_components"]) for m in read["models"]] == [
        *(("ours", 32), ("theirs", 32), ("linear", 3), ("gaussian rff", 32)),
        *(("exact kernel", None), ("boosted trees", None)),
    ]
    found = command(*args[:3], "--no-baselines", "--seeds", "1", "--sample", "60")
    assert found.exit_code == 0
    assert found.stdout.startswith("model")
    assert "test rmse" not in found.stdout
    assert_refused((*args, "--out", "out"), "out exists already")


def test_the_command_refuses_in_one_sentence(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv("train.csv", columns(), "a", "b", "c", "y", "word")
    for name in ("y", "word"):
        command("convert", "train.csv", f"{name}.zarr", "--target", name, "--drop", "word" if name == "y" else "y")
    write_job("job.toml")
    write_job("dropping.toml", store='x"\nnan = "drop')
    assert_refused(["compare", "y.zarr", "absent.toml"], "absent.toml: cannot be read")
    assert_refused(["compare", "absent.zarr", "job.toml"], "absent.zarr: no Zarr v3 group found")
    assert_refused(["compare", "y.zarr", "job.toml", "--test", "word.zarr"], "word.zarr: targets are class labels")
    assert_refused(["compare", "y.zarr", "job.toml", "dropping.toml"], "the jobs read other arrays or rows")
    assert command("compare", "y.zarr").exit_code == 2
    assert command("compare", "y.zarr", "job.toml", "--components", "12,x").exit_code == 2
    assert command("compare", "y.zarr", "job.toml", "--components", "0").exit_code == 2
    monkeypatch.setattr(comparison_plots, "find_spec", lambda name: None)
    found = command("compare", "y.zarr", "job.toml", "--out", "out")
    assert found.exit_code == 1
    assert_one_line(found.stderr, ["Plots need Matplotlib", 'pip install "ntkdist[bench]"'])
    assert not Path("out").exists()


def test_nothing_to_compare_is_said(make_dataset: Any, table: Any) -> None:
    with pytest.raises(nd.SpecError, match="there are no jobs"):
        nd.compare("x.zarr", [])
    with pytest.raises(nd.SpecError, match="seeds is 0"):
        nd.compare("x.zarr", [job(NTK)], seeds=0)


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ([], []),
        ([64], [64]),
        ([256, 300, 1024, 4096], [300, 1024, 4096]),
        ([256, 512, 1024], [256, 512, 1024]),
        ([1000, 1001, 1002], [1000, 1001, 1002]),
    ],
)
def test_labels_of_numbers_do_not_touch(numbers: list[int], shown: list[int]) -> None:
    assert _apart(numbers) == shown


def test_a_fit_is_timed_after_its_code_is_compiled(make_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are mapped by another draw first, so that the fit still draws its own."""
    mapped: list[tuple[int, int]] = []
    kept = nd.NTKRandomFeatures.apply

    def apply(self: nd.NTKRandomFeatures, params: Any, x: Any) -> Any:
        mapped.append((self.seed, len(x)))
        return kept(self, params, x)

    monkeypatch.setattr(nd.NTKRandomFeatures, "apply", apply)
    one = nd.Job(nd.Dataset(make_dataset(np.eye(60), np.arange(60.0))), nd.NTKRandomFeatures(64, seed=3), alphas=(1.0,))
    nd.compare(one.dataset, [one], seeds=1, sample=20, baselines=False)
    assert mapped[0] == (3 + OTHER_SEED, WARM_ROWS)
    assert {seed for seed, _ in mapped[1:]} == {3}
