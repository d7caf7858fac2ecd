"""The benchmarks of jobs/, each run on tiny data as a real process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "bench_exact.py",
    "bench_exact.py --rounds 1",
    "bench_headline.py images",
    "bench_headline.py vectors",
    "bench_images.py accuracy",
    "bench_images.py cntk",
    "bench_kernel_error.py",
    "bench_memory.py",
    "bench_plans.py",
    "bench_regression.py errors",
    "bench_regression.py uncertainty",
    "bench_scale.py metric",
    "bench_scale.py rows",
    "bench_scale.py tasks",
    "bench_scale.py workers",
    "bench_scale.py workers --metric",
    "bench_solvers.py pcg",
    "bench_solvers.py tiles",
    "bench_speed.py maps",
    "bench_speed.py pass",
    "bench_speed.py product",
    "bench_speed.py select",
    "bench_speed.py sparse",
    "bench_store.py",
    "bench_tables.py errors",
]


def test_every_benchmark_is_run() -> None:
    scripts = {path.name for path in (ROOT / "jobs").glob("bench_*.py")}
    assert scripts == {command.split()[0] for command in COMMANDS}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_benchmark_runs_on_tiny_data(command: str, tmp_path: Path) -> None:
    words = [f"jobs/{command.split()[0]}", *command.split()[1:], "--quick", "--json", str(tmp_path / "result.json")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result) == {"title", "command", "data", "machine", "versions", "notes", "rows", "claims"}
    assert result["command"] == " ".join(["python", *words])
    assert result["rows"]
    assert all(result["rows"])
    assert result["data"]
    assert all({"sha256", "rows"} & set(each) for each in result["data"])
    assert f"**{result['title']}**" in done.stdout
    assert all(outcome in done.stdout for outcome in result["claims"].values())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_benchmark_of_tables_measures_what_its_file_lacks(tmp_path: Path) -> None:
    def measure(*words: str) -> dict[str, Any]:
        command = [
            sys.executable,
            "jobs/bench_tables.py",
            "errors",
            "--quick",
            "--json",
            str(tmp_path / "t.json"),
            *words,
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "t.json").read_text())

    first = measure("--model", "linear")
    both = measure("--model", "linear", "--model", "scikit-learn trees", "--data", str(tmp_path))
    assert first["notes"][0] == "regression, 300 rows, 4 columns, 1 category of up to 5 levels, 12 % missing"
    assert both["rows"][1] == first["rows"][0]
    assert both["rows"][0]["error"][0] < 0.8 * first["rows"][0]["error"][0] < 0.8
    assert both["command"].endswith("t.json --data DIR --model 'scikit-learn trees' --model 'linear'")
    again = measure("--again", "linear")
    assert again["rows"][0] == both["rows"][0]
    assert again["rows"][1]["error"] == first["rows"][0]["error"]
    assert again["rows"][1]["processor s"] != first["rows"][0]["processor s"]
    more = measure("--model", "linear", "--splits", "2")["rows"][1]
    assert more["split"] == [0, 1]
    assert more["processor s"][0] == again["rows"][1]["processor s"][0]
    with pytest.raises(AssertionError, match="name another file"):
        measure("--model", "linear", "--budget", "2")
