"""The public names: their examples run, they are listed before they are imported, and they are shown in short."""

import doctest
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import MakeDataset

import ntkdist as nd

ROOT = Path(nd.__file__).parent
EXAMPLES = [name for name in nd.__all__ if ">>>" in (getattr(nd, name).__doc__ or "")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = (each for each in doctest.DocTestFinder(recurse=False).find(getattr(nd, name), name, globs={"np": np}))
    failed, tried = doctest.DocTestRunner(verbose=False).run(found)
    assert tried
    assert not failed, capsys.readouterr().out


def test_main_names_have_examples() -> None:
    main = {"NTKRidge", "NTKRidgeCV", "NTKRidgeClassifier", "FeatureTransformer", "fit", "convert", "save"}
    assert main <= set(EXAMPLES)


def test_names_are_listed_before_they_are_imported() -> None:
    code = "import sys, ntkdist as nd; print(set(nd.__all__) <= set(dir(nd)), 'sklearn' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]


def test_types_and_licence_are_in_the_package() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert project["license"] == "BSD-3-Clause"
    (licence,) = project["license-files"]
    assert (ROOT.parent / licence).read_text().startswith("BSD 3-Clause License")
    assert (ROOT.parent / licence).parent == ROOT  # which the wheel holds
    assert (ROOT / "py.typed").exists()


class Cells(HTMLParser):
    """The texts of the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_results_are_shown_in_short(make_dataset: MakeDataset, xy: Any) -> None:
    """No number of an array is printed, and what an HTML table holds cannot be taken for markup."""
    x, y = xy
    job = nd.Job(nd.Dataset(make_dataset(x, y, name="a<b")), nd.Nystrom(40, nd.Gaussian(2.0)))
    result, plan = nd.fit(job), nd.plan(job)
    fitted = nd.NTKRidgeCV(metric=nd.Metric(), front="standard", keep_factor=True).fit(x, y)
    for value in (result, result.model, result.cv, result.equations, plan, fitted.choice_, fitted.model_):
        assert len(repr(value)) < 400
        assert "\n" not in repr(value)
        shown = value._repr_html_()
        assert len(shown) < 2500
        assert type(value).__name__ in Cells(shown).texts
        assert "features" in Cells(shown).texts or isinstance(value, nd.CVResult)
    assert len(repr(result.model.features)) < 200
    assert len(repr(job)) < 400
    assert f"{result.cv.rmse:.6g}" in Cells(result._repr_html_()).texts
    assert any(text.endswith("a<b.zarr") for text in Cells(plan._repr_html_()).texts)
    assert len(Cells(fitted.choice_._repr_html_()).texts) == 1 + 2 * (3 + len(fitted.choice_.trials))
