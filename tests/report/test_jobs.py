"""The benchmarks of jobs/, each run on tiny data as a real process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "bench_exact.py",
    "bench_images.py accuracy",
    "bench_images.py cntk",
    "bench_kernel_error.py",
    "bench_memory.py",
    "bench_plans.py",
    "bench_regression.py errors",
    "bench_regression.py uncertainty",
    "bench_scale.py rows",
    "bench_scale.py tasks",
    "bench_scale.py workers",
    "bench_solvers.py pcg",
    "bench_solvers.py tiles",
    "bench_speed.py maps",
    "bench_speed.py pass",
    "bench_speed.py product",
    "bench_speed.py select",
    "bench_speed.py sparse",
    "bench_store.py",
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
