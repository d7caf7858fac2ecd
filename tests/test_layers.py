"""Who may import whom: one door per dependency, and imports that point strictly downward."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ntkdist

ROOT = Path(ntkdist.__file__).parent

# From the bottom up: a module imports only what stands before it.  A package counts as one; "ntkdist" is the package's
# own __init__, and through it all that is public.
ORDER = (
    "errors",
    "devices",
    "versions",
    "spec",
    "tree",
    "backend",
    "fused",
    "progress",
    "draws",
    "kernels",
    "sketch",
    "features",
    "clouds",
    "places",
    "groups",
    "sparse",
    "data",
    "arrays",
    "beside",
    "sources",
    "tables",
    "convert",
    "ranges",
    "sums",
    "solvers",
    "scores",
    "select",
    "preprocess",
    "uncertainty",
    "model",
    "prefixes",
    "store",
    "clusters",
    "job",
    "cut",
    "footprint",
    "plan",
    "preflight",
    "launch",
    "cluster",
    "gpu_plan",
    "phases",
    "shards",
    "reduce",
    "checkpoint",
    "runs",
    "machine",
    "prepare",
    "products",
    "iterate",
    "tiling",
    "fit",
    "detach",
    "order",
    "apply",
    "out_of_fold",
    "influence",
    "held_out",
    "kernel_error",
    "yardsticks",
    "comparison",
    "measure",
    "compare",
    "rates",
    "estimate",
    "estimators",
    "ntkdist",
    "demo",
    "plots",
    "report",
    "cli",
)
# The modules that may import each dependency; distributed's Client as a type is all that the verbs take.
DOORS = {
    "zarr": {"clouds", "places", "groups"},
    "obstore": {"clouds"},
    "dask": {"reduce", "preflight", "launch", "cluster"},
    "distributed": {
        *("reduce", "preflight", "launch", "cluster", "phases"),
        *("prepare", "products", "iterate", "tiling", "fit", "apply", "held_out", "measure", "compare"),
        *("order", "detach", "out_of_fold", "influence", "report", "estimate", "rates"),
    },
    "dask_cuda": {"launch"},
    "dask_gateway": {"launch"},
    "dask_jobqueue": {"launch"},
    "dask_kubernetes": {"launch"},
    "kr8s": {"launch"},
    "sklearn": {"demo", "estimators", "yardsticks"},
    "click": {"cli"},
    "rich": {"progress"},
    "pyarrow": {"tables"},
    "cupy": {"devices"},
    "cupyx": {"devices"},
    "matplotlib": {"report", "plots"},
    "threadpoolctl": {"backend"},
    "numba": {"fused"},
}
STRANGERS = [
    ("features", "solvers"),
    ("features", "groups"),
    ("features", "data"),
    ("kernels", "features"),
    ("solvers", "groups"),
]


def modules() -> list[tuple[str, Path]]:
    """Each source file with its place in the order."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).parts[0].removesuffix(".py")
        found.append(("ntkdist" if name == "__init__" else name, path))
    return found


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, one for each name of a ``from ... import``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(path: Path) -> Iterator[str]:
    """Modules of ntkdist that a file imports."""
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "ntkdist":
            below = rest[0] if rest else ""
            is_module = (ROOT / f"{below}.py").exists() or (ROOT / below / "__init__.py").exists()
            yield below if below and is_module else "ntkdist"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda v: v if isinstance(v, str) else v.stem)
def test_imports_point_downward(name: str, path: Path) -> None:
    assert name in ORDER, f"{name} is new: give it a place in ORDER"
    for other in set(inner(path)) - {name}:
        assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}, which stands above it"


def test_one_door_for_every_dependency() -> None:
    found: dict[str, set[str]] = {dependency: set() for dependency in DOORS}
    for name, path in modules():
        for top in {each.split(".")[0] for each in imports(path)} & DOORS.keys():
            found[top].add(name)
    for dependency, users in found.items():
        assert users <= DOORS[dependency], f"{dependency} is for {DOORS[dependency]}"


def test_verbs_take_the_client_as_a_type_only() -> None:
    for name in ("prepare", "products", "iterate", "tiling", "fit", "apply", "measure", "compare"):
        outer = {each for each in imports(ROOT / f"{name}.py") if each.split(".")[0] in ("dask", "distributed")}
        assert outer <= {"distributed.Client"}
        tree = ast.parse((ROOT / f"{name}.py").read_text())
        called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "id")}
        assert "Client" not in called


def test_only_public_dask() -> None:
    for _, path in modules():
        for each in imports(path):
            if each.split(".")[0] in ("dask", "distributed"):
                assert not any(part.startswith("_") for part in each.split(".")), f"{path.name} imports {each}"


def test_strangers_do_not_meet() -> None:
    for name, path in modules():
        for one, other in STRANGERS:
            assert name != one or other not in set(inner(path)), f"{path.name} imports {other}"


def test_importing_the_package_is_light() -> None:
    heavy = ["cupy", "sklearn", "matplotlib", "pyarrow", "rich", "pandas", "bokeh", "torch", "numba"]
    # Zarr imports CuPy where that is installed.
    code = "import zarr, sys; before = set(sys.modules); import ntkdist, ntkdist.cli"
    code += f"; print([m for m in {heavy} if m in sys.modules.keys() - before])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert found.stderr == ""
