"""The report of a run: what it says against refits in scikit-learn, and that it stands alone."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import ZONAL, Command, columns, inputs, write_csv, write_job
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from stored import MakeDataset

import ntkdist as nd
from ntkdist import random
from ntkdist.report.metric_section import section
from ntkdist.report.numbers import plain, with_error
from ntkdist.report.out_of_fold import WORST, OutOfFold, bin_edges, predict_out_of_fold
from ntkdist.report.pictures import of_choice, of_importances
from ntkdist.ridge.fit_report import MetricReport, RoundReport

F8 = NDArray[np.float64]
WIDER = """
const wide = [...document.querySelectorAll("h1, h2, h3, p, li, figcaption, .number, .number b, .number span")]
    .filter(each => each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== "inline");
const cut = [...document.querySelectorAll("figure svg text")].filter(each => {
    const [word, frame] = [each.getBoundingClientRect(), each.closest("svg").getBoundingClientRect()];
    return word.left < frame.left - 2 || word.right > frame.right + 2;
});
return [...wide, ...cut].map(each => each.textContent.trim().slice(0, 80));
"""


def out_of_fold(store: str, result: nd.FitResult, p: nd.Plan) -> tuple[F8, F8]:
    """Truth and predictions of every row by scikit-learn's Ridge on the features of the rows of the other folds."""
    pre, features = result.model.preprocessing, result.model.features
    rows = p.dataset.read(p.layout, 0, p.layout.rows)
    assert rows.y is not None
    z, y = features(pre.inputs(rows.x, "float64")), pre.targets(rows.y)
    weight = pre.weights(rows)
    fold = np.concatenate([p.folds_of(i) for i in range(p.layout.partitions)])
    assert result.cv is not None
    predicted = np.empty_like(y)
    for k in np.unique(fold):
        train = fold != k
        w = None if weight is None else weight[train]
        alpha = result.cv.alphas[result.cv.best[0]] * (train.sum() if w is None else w.sum())
        ridge = Ridge(alpha).fit(z[train], y[train], w)
        predicted[~train] = ridge.predict(z[~train]).reshape(-1, y.shape[1])
    return y * pre.y_scale + pre.y_mean, predicted * pre.y_scale + pre.y_mean


def looked_at(store: str, **options: object) -> tuple[OutOfFold, nd.FitResult, nd.Plan]:
    job = nd.Job(
        dataset=nd.Dataset(store, **options),  # type: ignore[arg-type]
        features=nd.ZonalFeatures(64, kernel=nd.NTK(1)),
        alphas_per_row=(1e-3, 1e-2),
        plan=nd.PlanTable(dtype="float64"),
    )
    result, p = nd.fit(job), nd.plan(job)
    assert result.equations is not None
    assert result.cv is not None
    return predict_out_of_fold(p, result.equations, result.cv), result, p


def test_numbers_are_those_of_refits(make_dataset: MakeDataset, table: tuple[F8, F8]) -> None:
    """Mean errors, the counts of bins, the spread of errors and the worst rows, of two targets and weights."""
    x, y = table
    store = make_dataset(x, y, weights=np.random.default_rng(0).uniform(0.5, 2, len(x)))
    found, result, p = looked_at(store, weight="weight")
    truth, predicted = out_of_fold(store, result, p)
    weight = p.dataset.read(p.layout, 0, p.layout.rows).weight
    assert weight is not None
    error = np.abs(truth - predicted)
    assert found.metrics.summary()["rmse"] == pytest.approx(np.sqrt(weight @ error**2 / weight.sum()).mean(), rel=1e-8)
    assert result.equations is not None
    edges = bin_edges(result.equations)
    inside = [np.clip(v[:, 0], edges[0], edges[-1] - 1e-9) for v in (truth, predicted)]
    np.testing.assert_allclose(found.counts, np.histogram2d(*inside, bins=(edges, edges), weights=weight)[0])
    assert found.spread.sum() == pytest.approx(weight.sum())
    worst = np.argsort(-error[:, 0], kind="stable")[:WORST]
    np.testing.assert_array_equal(found.largest.places, worst)
    np.testing.assert_allclose(found.largest.error, error[worst, 0], rtol=1e-6)


def test_classes_are_those_of_refits(make_dataset: MakeDataset, table: tuple[F8, F8]) -> None:
    """The confusion matrix and the worst row, with folds dealt by groups."""
    x, y = table
    codes = np.digitize(y[:, 0], np.quantile(y[:, 0], [0.3, 0.8]))
    store = make_dataset(x, codes, classes=True, groups=np.arange(len(x)) % 37)
    found, result, p = looked_at(store, groups="groups")
    truth, predicted = out_of_fold(store, result, p)
    right, guess = truth.argmax(1), predicted.argmax(1)
    expected = np.zeros((3, 3))
    np.add.at(expected, (right, guess), 1)
    np.testing.assert_array_equal(found.counts, expected)
    np.testing.assert_allclose(found.spread[:, 0].sum(), len(x))
    np.testing.assert_allclose(found.spread[:, 2].sum(), (right == guess).sum())
    lead = np.where(right == guess, 0, predicted.max(1) - predicted[np.arange(len(x)), right])
    assert found.largest.places[0] == lead.argmax()


def test_rows_beside_a_holdout_are_left_out(make_dataset: MakeDataset, table: tuple[F8, F8]) -> None:
    x, y = table
    store = make_dataset(x, y[:, 0], holdout=np.arange(len(x)) % 5 == 0)
    found, _, _ = looked_at(store, holdout="holdout")
    assert found.metrics.summary()["rows"] == len(x) / 5


def test_any_cutting_gives_the_same(table: tuple[F8, F8]) -> None:
    """Sums of cut rows are the sum of all."""
    _, y = table
    rng = np.random.default_rng(3)
    predicted, edges, places = y + rng.standard_normal(y.shape), np.linspace(90, 110, 9), np.arange(len(y))

    def of(rows: slice) -> OutOfFold:
        return OutOfFold.of_numbers(y[rows], predicted[rows], None, places[rows], edges, 1.0)

    whole, cut = of(slice(None)), of(slice(0, 7)) + of(slice(7, 450)) + of(slice(450, None))
    np.testing.assert_allclose(cut.counts, whole.counts)
    np.testing.assert_allclose(cut.spread, whole.spread)
    np.testing.assert_array_equal(cut.largest.places, whole.largest.places)


@pytest.fixture
def run(command: Command) -> str:
    """A complete run of a regression in the current directory."""
    data = columns()
    write_csv("train.csv", data, *"abcy")
    assert command("convert", "train.csv", "train.zarr", "--target", "y").exit_code == 0
    assert command("fit", write_job(), "--out", "run").exit_code == 0
    return "run"


def fit_metric(command: Command, names: str, metric: str = "rounds = 1") -> str:
    """Fit with a metric to columns of these names, of which the target depends on the first."""
    x = random.normals((300, len(names)), 0, 0, 0)
    write_csv("wide.csv", dict(zip(names, x.T, strict=True)) | {"target": np.sin(2 * x[:, 0])}, *names, "target")
    assert command("convert", "wide.csv", "wide.zarr", "--target", "target").exit_code == 0
    tables = f"[metric]\n{metric}\nn_components = 32\nscales = [1.0]"
    result = command("fit", write_job("wide.toml", "wide.zarr", features=ZONAL, tables=tables), "--out", "wide")
    assert result.exit_code == 0, result.output
    return "wide"


def test_the_section_of_a_metric(command: Command) -> None:
    """Rounds and directions as in the report, and a bar of each column."""
    run = fit_metric(command, "abc")
    assert command("report", run, "--no-data").exit_code == 0
    page, metric = Path(run, "report.html").read_text(), json.loads(Path(run, "report.json").read_text())["metric"]
    assert "rmse of target on the rows held out" in page
    assert "± nan" not in page
    section = page[page.index("<h2>Metric</h2>") : page.index("<h2>Data</h2>")]
    cells = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", section)]
    rounds = [
        [f"{i},\N{NO-BREAK SPACE}kept" if r["kept"] else str(i), f"{r['scale']:g}", f"{r['rmse']:.4g}"]
        for i, r in enumerate(metric["rounds"])
    ]
    assert [row[:3] for row in cells if len(row) == 4] == rounds
    assert len(rounds) == 2
    shown = [row for row in cells if len(row) == 2]
    assert [share for share, _ in shown] == [f"{each['share']:.1%}" for each in metric["directions"]]
    weights = metric["directions"][0]["columns"].items()
    first = " ".join(f"{'−' if v < 0 else '+'} {abs(v):.2f} {k}" for k, v in weights if abs(v) >= 0.005)
    assert shown[0][1].replace("\N{NO-BREAK SPACE}", " ") == first.removeprefix("+ ")
    (alt,) = re.findall('<div role="img" aria-label="(.*?)">', section)
    shares = sorted(metric["importances"].items(), key=lambda item: -item[1])
    assert alt == f"Bars of importances: {', '.join(f'{name} {share:.1%}' for name, share in shares)}."
    assert shares[0][0] == "a"
    assert page.count('<div role="img" aria-label="') == page.count("<figure") == page.count("<svg")


def test_no_section_without_a_metric_and_no_bars_where_none_was_kept(command: Command, run: str) -> None:
    assert command("report", run, "--no-data").exit_code == 0
    assert "<h2>Metric</h2>" not in Path(run, "report.html").read_text()
    metric = MetricReport(
        form="full",
        rounds=[RoundReport(1.0, 0.5, 1e-3, True), RoundReport(1.0, 0.7, 1e-3)],
        ended="gain",
        importances={"a": 0.5, "b": 0.5},
        sensitivities={"a": 1.0, "b": 1.0},
    )
    found = section(metric)
    assert found.figures == []
    assert "round 0 was kept" in found.text
    assert [row[0] for row in found.tables[0].rows] == ["0,\N{NO-BREAK SPACE}kept", 1]
    assert found.tables[0].text.endswith("because the last gained less than a thousandth.")


@pytest.mark.parametrize(("columns", "rest"), [(20, ""), (21, "1 other"), (30, "10 others")])
def test_the_columns_beyond_the_first_twenty_are_summed(columns: int, rest: str) -> None:
    shares = {f"c{i}": (i + 1) / (columns * (columns + 1) / 2) for i in range(columns)}
    found = of_importances(shares)
    bars = [f"c{i} {shares[f'c{i}']:.1%}" for i in range(columns)[::-1][:20]]
    if rest:
        bars.append(f"{rest} {sum(shares[f'c{i}'] for i in range(columns - 20)):.1%}")
    assert found.alt == f"Bars of importances: {', '.join(bars)}."
    assert len(re.findall(rf">(c\d+|{rest or 'none'})</text>", found.svg)) == len(bars)


def test_a_long_name_loses_its_middle() -> None:
    found = of_importances({"the first of these, in millimetres": 0.75, "short": 0.25})
    assert found.alt == "Bars of importances: the first of…millimetres 75.0%, short 25.0%."


def test_one_file_that_stands_alone(command: Command, run: str) -> None:
    """Nothing to fetch, all plots there, the job in it fits to the same bits; a second report replaces the first."""
    for _ in range(2):
        result = command("report", run)
        assert result.exit_code == 0, result.output
    page = Path(run, "report.html").read_text()
    assert set(re.findall(r'<figure id="figure-(\w+)"', page)) >= {"alpha", "truth", "calibration", "kernel", "memory"}
    assert page.count("<svg") == page.count("<figure")
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "url(http" not in page
    job = page[page.index("<pre>") + 5 : page.index("</pre>")].replace("&#34;", '"').replace("&#39;", "'")
    Path("again.toml").write_text(job)
    assert command("fit", "again.toml", "--out", "again").exit_code == 0
    x = inputs(columns(7, seed=1))
    np.testing.assert_array_equal(nd.load("again/model.zarr")(x), nd.load(f"{run}/model.zarr")(x))
    cv = nd.fit(nd.Job.read("job.toml"), out=run).cv
    assert cv is not None
    assert with_error(cv.rmse, cv.rmse_standard_error) in page


def test_without_the_data(command: Command, run: str) -> None:
    Path("train.zarr").rename("elsewhere.zarr")
    result = command("report", run)
    assert result.exit_code == 1
    assert "train.zarr" in result.output
    assert not Path(run, "report.html").exists()
    assert command("report", run, "--no-data", "--out", "bare.html").exit_code == 0
    page = Path("bare.html").read_text()
    assert 'id="figure-alpha"' in page
    assert 'id="figure-truth"' not in page


@pytest.mark.slow
def test_a_report_of_an_earlier_version_is_read(command: Command, run: str) -> None:
    """Without what later versions added, and with a field of a version to come."""
    path = Path(run, "report.json")
    report = json.loads(path.read_text())
    del report["curve"], report["data"]["clipped_rows"], report["data"]["folds"], report["run"]["timeline"]
    path.write_text(json.dumps(report | {"later": 1}))
    shown = command("report", run)
    assert shown.exit_code == 0, shown.output
    assert 'id="figure-speed"' not in Path(run, "report.html").read_text()
    again = nd.fit(nd.Job.read("job.toml"), out=run).report
    assert "later" not in again
    assert again["data"]["clipped_rows"] == 0
    assert all(again[name] == report[name] for name in report.keys() - {"data", "run"})


@pytest.mark.slow
def test_other_data_are_refused(command: Command, run: str) -> None:
    data = columns(seed=5)
    write_csv("train.csv", data, *"abcy")
    Path("train.zarr").rename("elsewhere.zarr")
    assert command("convert", "train.csv", "train.zarr", "--target", "y").exit_code == 0
    result = command("report", run)
    assert result.exit_code == 1
    assert "not the data that was fitted on" in result.output


def test_no_run_is_one_sentence(command: Command) -> None:
    result = command("report", "nowhere")
    assert result.exit_code == 1
    assert result.output.startswith("ntkdist: nowhere holds no complete run")


def test_simple_models_classes_and_inputs_stand_beside_the_errors(command: Command) -> None:
    """A linear model's accuracy by scikit-learn, the largest class's, recalls, and the inputs of the worst rows."""
    data = columns()
    write_csv("train.csv", data, *"abc", "word")
    assert command("convert", "train.csv", "train.zarr", "--target", "word").exit_code == 0
    assert command("fit", write_job(tables="[plan]\nfolds = 4"), "--out", "run").exit_code == 0
    assert command("report", "run").exit_code == 0
    report, page = json.loads(Path("run/report.json").read_text()), Path("run/report.html").read_text()
    counts = [int((data["word"] == name).sum()) for name in ("low", "middle", "top")]
    np.testing.assert_allclose(report["data"]["class_counts"], counts)
    assert report["baselines"]["majority_accuracy"] == pytest.approx(max(counts) / 240)
    numbers = {name: value for value, name in re.findall('<div class="number"><b>(.*?)</b><span>(.*?)</span>', page)}
    assert numbers["accuracy of always naming the largest class"] == f"{max(counts) / 240:.1%}"
    result = nd.fit(nd.Job.read("job.toml"), out="run")
    p = nd.plan(nd.Job.read("job.toml"))
    assert result.equations is not None
    assert result.cv is not None
    sums = predict_out_of_fold(p, result.equations, result.cv)
    rows = re.findall("<tr><td>(low|middle|top)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page)
    recall = np.diagonal(sums.counts) / counts
    precision = np.diagonal(sums.counts) / sums.counts.sum(axis=0)
    assert rows == [
        (name, str(count), f"{one:.1%}", f"{other:.1%}")
        for name, count, one, other in zip(("low", "middle", "top"), counts, recall, precision, strict=True)
    ]
    balanced = numbers["balanced accuracy: the mean recall of the classes"].split("%")[0]
    assert float(balanced) == pytest.approx(100 * recall.mean(), abs=0.5)
    linear = float(numbers["accuracy of a linear model on the same folds"].split("%")[0]) / 100
    job = nd.Job(nd.Dataset("train.zarr"), nd.Linear(3), plan=nd.PlanTable(folds=4))
    truth, predicted = out_of_fold("train.zarr", nd.fit(job), nd.plan(job))
    assert linear == pytest.approx((truth.argmax(1) == predicted.argmax(1)).mean(), abs=0.006)  # two digits are shown
    worst = int(sums.largest.places[0])
    head = re.search("<th>error</th>(.*?)</tr>", page)
    assert head is not None
    assert re.findall("<th>(.*?)</th>", head[1]) == ["a", "b", "c"]
    place = int(p.dataset.column(p.layout, "row", worst, worst + 1)[0])
    shown = re.search(f"<tr><td>{place}</td>.*?</tr>", page)
    assert shown is not None
    cells = re.findall("<td>(.*?)</td>", shown[0])
    assert cells[1] == data["word"][place]
    assert cells[4:] == [plain(float(data[name][place]), 5) for name in "abc"]


def test_trees_and_units_where_they_are_asked_for(command: Command, run: str, few_rounds_on_one_thread: None) -> None:
    assert command("report", run, "--unit", "k€", "--trees").exit_code == 0
    page = Path(run, "report.html").read_text()
    assert "cross-validated rmse of y [k€] ± its standard error" in page
    assert "true y [k€]" in page
    assert "rmse of boosted trees on the same folds" in page
    cv = nd.fit(nd.Job.read("job.toml"), out=run).cv
    assert cv is not None
    assert f"<b>{plain(float(columns()['y'].std()))}</b><span>rmse of always predicting the mean" in page
    job = nd.Job(nd.Dataset("train.zarr"), nd.Linear(3))
    linear = nd.fit(job).cv
    assert linear is not None
    shown = with_error(linear.rmse, linear.rmse_standard_error)
    assert f"<b>{shown}</b><span>rmse of a linear model on the same folds" in page


def test_one_number_has_one_name_where_there_are_several_targets(make_dataset: MakeDataset, table: Any) -> None:
    """The error of the chosen penalty in the plot is that of the result: the mean of the targets' roots."""
    x, y = table
    result = nd.fit(nd.Job(nd.Dataset(make_dataset(x, y * [1.0, 100.0])), nd.ZonalFeatures(64, kernel=nd.NTK(1))))
    assert result.cv is not None
    drawn: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ntkdist.report.pictures.svg", lambda name, draw, height: drawn.append(draw) or "")
        of_choice(result.cv, ())
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    drawn[0](axes)
    (chosen,) = [line.get_ydata() for line in axes.lines if line.get_label().startswith("chosen")]
    assert np.ravel(chosen) == pytest.approx([result.cv.rmse], rel=1e-12)
    means = np.sqrt(result.cv.mse[result.cv.best[0]]).mean(axis=1)  # of folds of equal size
    assert result.cv.rmse_standard_error == pytest.approx(np.std(means, ddof=1) / np.sqrt(len(means)), rel=0.1)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (767.7, 10.3, "768 ± 10"),
        (767.7, 42.0, "770 ± 40"),
        (0.12345, 0.0123, "0.123 ± 0.012"),
        (0.12345, 0.0456, "0.12 ± 0.05"),
        (12345.6, 1960.0, "12,000 ± 2,000"),
        (0.999, 0.0, "0.999"),
        (5.0, float("nan"), "5"),
        (1.234e-9, 5e-11, "(1.23 ± 0.05)e-9"),
    ],
)
def test_digits_that_an_error_supports(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_plot_is_drawn_in_a_browser(command: Command, width: int, dark: bool, tmp_path: Path) -> None:
    """In headless Chromium: no plot is empty or cut off, nothing is wider than the window, dark is dark."""
    from PIL import Image
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    run = fit_metric(command, "abcdefghijklmnopqrstuvwx")
    assert command("report", run).exit_code == 0
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.binary_location = "/usr/bin/chromium"
    browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(Path(run, "report.html").absolute().as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        # No text is wider than the box that holds it, nor is a word of a plot cut off at its frame.
        assert browser.execute_script(WIDER) == []
        assert "inputs, the 8 of largest importance are shown" in browser.find_element(By.TAG_NAME, "body").text
        plots = browser.find_elements(By.CSS_SELECTOR, "figure svg")
        assert len(plots) >= 6
        for i, plot in enumerate(plots):
            path = tmp_path / f"plot{i}.png"
            plot.screenshot(str(path))
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB")).astype(int)
            assert pixels.shape[1] >= min(width, 600) / 2
            paper = pixels[2, 2]
            assert (paper.mean() < 100) == dark
            drawn = np.abs(pixels - paper).sum(2) > 60
            assert drawn.mean() > 0.005  # axes, words and marks
            half = np.array_split(drawn, 2, axis=1)
            assert min(part.any(axis=1).mean() for part in half) > 0.1  # on either side
            saturated = np.ptp(pixels, axis=2) > 60
            assert saturated.sum() > 50  # what is plotted has a colour, axes have none
    finally:
        browser.quit()
