"""Results of benchmarks: one form of file, and two READMEs whose tables are made of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "jobs/results").glob("*.json"))
TABLE = re.compile(r"<!-- [^\n]*: python jobs/tables\.py .*?<!-- end -->", re.DOTALL)


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in RESULTS]


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    printed = TABLE.findall(run("jobs/tables.py", *files()))
    assert len(printed) == 4
    assert TABLE.findall((ROOT / "README.md").read_text()) == printed, (
        "README.md is not up to date; run: python jobs/tables.py jobs/results/*.json --write README.md"
    )


def test_the_readme_of_jobs_is_that_of_the_results(tmp_path: Path) -> None:
    text = (ROOT / "jobs/README.md").read_text()
    copy = tmp_path / "README.md"
    copy.write_text(TABLE.sub(lambda found: found[0].splitlines()[0] + "\n<!-- end -->", text))
    run("jobs/tables.py", *files(), "--write", str(copy))
    assert copy.read_text() == text, (
        "jobs/README.md is not up to date; run: python jobs/tables.py jobs/results/*.json --write jobs/README.md"
    )
    titles = [json.loads(path.read_text())["title"] for path in RESULTS]
    assert all(text.count(f"**{title}**\n") == titles.count(title) for title in titles)
    assert all(f"[{path.name}]" in text for path in (ROOT / "jobs").glob("*.py"))


def test_tables_are_written_between_their_marks(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    copy = tmp_path / "README.md"
    copy.write_text(TABLE.sub(lambda found: found[0].splitlines()[0] + "\nold\n<!-- end -->", text))
    run("jobs/tables.py", *files(), "--write", str(copy))
    assert copy.read_text() == text


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_has_rows_that_its_command_wrote(path: Path) -> None:
    found = json.loads(path.read_text())
    script = found["command"].split()[1]
    assert (ROOT / script).is_file()
    assert found["rows"]
    assert {"processor", "cores", "memory_gb"} <= set(found["machine"])
    named = re.findall(r"--model (?:'([^']*)'|(\S+))", found["command"])
    assert not named or {row["model"] for row in found["rows"]} <= {a or b for a, b in named}


def test_a_benchmark_writes_that_form(tmp_path: Path) -> None:
    out = tmp_path / "select.json"
    run("jobs/bench_speed.py", "select", "--m", "32", "--pairs", "2", "--json", str(out))
    found = json.loads(out.read_text())
    assert found["command"] == f"python jobs/bench_speed.py select --m 32 --pairs 2 --json {out}"
    assert set(found) == {"title", "command", "data", "machine", "versions", "notes", "rows", "claims"}
    assert found["data"] == [{"name": "normals, seed 0", "rows": 80, "columns": 32}]
    assert [len(row["processor s"]) for row in found["rows"]] == [2, 2, 2]


def test_columns_are_compared_with_standardised_ones(tmp_path: Path) -> None:
    paths = []
    for name, losses in {"one": [0.2, 0.1, 0.4, 0.6], "two": [0.5, 0.5, 0.2, 0.1]}.items():
        models = [f"{kind}, {front}" for kind in ("NTK, full", "b") for front in ("standard", "both")]
        rows = [{"model": model, "error": [loss]} for model, loss in zip(models, losses, strict=True)]
        path = tmp_path / f"columns-{name}.json"
        path.write_text(json.dumps({"command": f"python jobs/bench_tables.py columns {name}", "rows": rows}))
        paths.append(str(path))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table columns: python jobs/tables.py jobs/results/*.json -->\n<!-- end -->")
    run("jobs/tables.py", *paths, "--write", str(readme))
    assert readme.read_text().splitlines()[1:-1] == [
        "| 2 tables | standard | both |",
        "| --- | --- | --- |",
        "| NTK, full | 1.000 (1) | 0.750 (1) |",
        "| b | 1.000 (1) | 1.000 (1) |",
    ]


MARKS = ("table ranks", "table errors", "table summary")


def test_models_are_ranked_over_tables(tmp_path: Path) -> None:
    def result(title: str, **losses: tuple[str, list[float]]) -> str:
        rows = [
            {"model": name, measure: values, "processor s": [len(name)] * 2, "peak MB": [7.0]}
            for name, (measure, values) in losses.items()
        ]
        path, command = tmp_path / f"{title}.json", f"python jobs/bench_tables.py errors {title}"
        path.write_text(json.dumps({"title": title, "command": command, "rows": rows}))
        return str(path)

    paths = [
        result("one", a=("error", [0.2, 0.4]), bb=("error", [0.5, 0.5])),
        result("two", a=("error", [0.1]), bb=("error", [0.1]), ccc=("error", [0.05])),
        result("three", bb=("log loss", [0.7])),
        result("four", **{name: ("log loss", [loss]) for name, loss in RANKED.items()}),
    ]
    readme = tmp_path / "README.md"
    marks = [f"<!-- {name}: python jobs/tables.py jobs/results/*.json -->" for name in MARKS]
    readme.write_text("\n<!-- end -->\n".join([*marks, ""]))
    run("jobs/tables.py", *paths, "--write", str(readme))
    lines = readme.read_text().splitlines()
    assert lines[3:7] == [
        "| numbers | a | 2 | 1.75 | 1 | 0.200 ± 0.100 | 1 | 7 |",
        "| numbers | bb | 2 | 2.25 | 0 | 0.300 ± 0.200 | 2 | 7 |",
        "| numbers | ccc | 1 | 1.00 | 1 | 0.050 | 3 | 7 |",
        "| classes | bb | 1 | 1.00 | 1 | 0.700 | 2 | 7 |",
    ]
    first = lines.index("| one | **0.300 ± 0.100** | 0.500 ± 0.000 |  |" + "  |" * len(RANKED))
    assert lines[first + 1 : first + 3] == [
        "| two | 0.100 | 0.100 | **0.050** |" + "  |" * len(RANKED),
        "| three |  | **0.700** |  |" + "  |" * len(RANKED),
    ]
    assert lines[-5:] == [  # each set on the tables that have all of it
        "| mean rank (wins) | ours | LightGBM | CatBoost | scikit-learn trees |",
        "| --- | --- | --- | --- | --- |",
        "| by default, 1 tables with classes as the target | 1.0 (1) | 2.0 (0) | 4.0 (0) | 3.0 (0) |",
        "| tuned, 1 tables with classes as the target | 2.5 (0) | 1.0 (1) | 2.5 (0) |  |",
        "<!-- end -->",
    ]


RANKED = {"ours": 0.1, "LightGBM": 0.2, "CatBoost": 0.5, "scikit-learn trees": 0.3}
RANKED |= {"ours, averaged": 0.3, "LightGBM, tuned": 0.2, "CatBoost, tuned": 0.3}
