"""Who may import whom: one door per dependency, and imports that point strictly downward."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ntkdist

ROOT = Path(ntkdist.__file__).parent

# From the bottom up: a room, or a file of the hall, imports only what stands before it.  "ntkdist" is the package's own
# __init__, and through it all that is public.
ORDER = (
    *("errors", "random", "memory", "gpu", "display", "spec", "backend"),
    *("data", "kernels", "sums", "features", "solvers", "cluster", "planning", "ridge", "report"),
    *("ntkdist", "demo", "cli"),
)
# The one door of every dependency, by its file or its room.
DOORS = {
    "zarr": {"data/object_store", "data/storage", "data/zarr_groups"},
    "obstore": {"data/object_store"},
    "PIL": {"data/images"},
    "pyarrow": {
        "data/columns",
        "data/image_columns",
        "data/new_rows",
        "data/table_files",
        "data/tables",
        "data/written_tables",
    },
    "dask": {"cluster"},
    "distributed": {"cluster"},
    "dask_cuda": {"cluster/launch"},
    "dask_gateway": {"cluster/launch"},
    "dask_jobqueue": {"cluster/launch"},
    "dask_kubernetes": {"cluster/launch"},
    "kr8s": {"cluster/launch"},
    "rich": {"cluster/progress"},
    "sklearn": {"ridge/estimators", "report/baselines", "demo"},
    "matplotlib": {"report"},
    "click": {"cli"},
    "cupy": {"gpu"},
    "cupyx": {"gpu"},
    "threadpoolctl": {"backend"},
    "numba": {"features/loops", "kernels/cntk_loops"},
}
STRANGERS = [("features", "data"), ("features", "sums"), ("kernels", "data"), ("solvers", "data")]


def name_of(path: Path) -> str:
    """The name of a file inside the package, with its room."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def modules() -> list[tuple[str, Path]]:
    """Each source file with its place in the order."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        found.append(("ntkdist" if room == "__init__" else room, path))
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


def test_no_file_imports_itself_by_way_of_others() -> None:
    files = {name_of(path): path for _, path in modules()}
    graph = {}
    for name, path in files.items():
        asked = (
            each.removeprefix("ntkdist.").replace(".", "/") for each in imports(path) if each.startswith("ntkdist.")
        )
        parents = ((each, each.rpartition("/")[0]) for each in asked)
        parts = ([part + end for part in pair for end in ("", "/__init__")] for pair in parents)
        graph[name] = {next((part for part in some if part in files), name) for some in parts} - {name}
    assert list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_one_door_for_every_dependency() -> None:
    for _, path in modules():
        name = name_of(path)
        for top in {each.split(".")[0] for each in imports(path)} & DOORS.keys():
            assert any(f"{name}/".startswith(f"{door}/") for door in DOORS[top]), f"{name} imports {top}"


def test_the_client_is_a_type_outside_its_room() -> None:
    for room, path in modules():
        if room != "cluster":
            called = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            assert "Client" not in {call.id for call in called if isinstance(call, ast.Name)}, path.name


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
    heavy = ["cupy", "PIL", "sklearn", "matplotlib", "pyarrow", "rich", "pandas", "bokeh", "torch", "numba"]
    # Zarr imports CuPy where that is installed.
    code = "import zarr, sys; before = set(sys.modules); import ntkdist, ntkdist.cli"
    code += f"; print([m for m in {heavy} if m in sys.modules.keys() - before])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert found.stderr == ""
