"""What a fit by tiles costs: operations, calls and bytes as planned, and as they are."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from maps import peak_bytes
from plans import plan_of

import ntkdist as nd
from ntkdist.cluster.connect import resources
from ntkdist.planning import estimate
from ntkdist.planning.rates import Rates
from ntkdist.ridge.tiled import TilePlacement
from ntkdist.solvers.tiled import divide, factor, solve_tiles, subtract_product, work
from ntkdist.sums import TileSums
from ntkdist.sums.tiles import nbytes, owner_index, places, runs, worker_bytes
from ntkdist.sums.tiles import panels as cut

pytestmark = pytest.mark.usefixtures("alone")


def tiled(p: nd.Plan, tile: int, **changes: Any) -> nd.Plan:
    return msgspec.structs.replace(p, solver=nd.TiledCholesky(), tile=tile, **changes)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_work_is_what_solving_does(n: int) -> None:
    """Every tile stands for when it is there if nothing waits but for what it needs."""
    cost = {factor: 1 / 3, divide: 1.0, subtract_product: 2.0}
    done: Counter[Any] = Counter()

    def call(place: tuple[int, int], function: Any, *args: Any) -> float:
        takes = cost.get(function, 0.0) if place[0] < n else 0.0
        done.update(calls=1, operations=takes)
        tiles = args[: 1 if function is factor else None]
        return max(tiles) + takes

    ends = solve_tiles({place: 0.0 for place in places(n, 1) if place != (n, n)}, n, 1, 1.0, call)
    assert work(n) == (pytest.approx(done["operations"]), pytest.approx(max(ends)), done["calls"])


@given(st.integers(16, 60), st.integers(1, 70), st.integers(1, 3), st.integers(1, 5), st.integers(1, 9))
def test_bytes_are_those_of_the_arrays(m: int, tile: int, classes: int, workers: int, panels: int) -> None:
    p = tiled(plan_of(m=m), tile, panels=min(panels, len(places(m, tile))))
    p = msgspec.structs.replace(p, layout=msgspec.structs.replace(p.layout, targets=classes))
    dealt = [TileSums.zeros(m, p.t, tile, [place]).__sizeof__() for place in places(m, tile)]
    assert nbytes(m, p.t, tile) == tuple(dealt)
    assert p.sum_bytes == max(TileSums.zeros(m, p.t, tile, panel).__sizeof__() for panel in cut(m, tile, p.panels))
    homes: Counter[int] = Counter()
    for place, size in zip(places(m, tile), dealt, strict=True):
        homes[owner_index(place, runs(m, tile)) % workers] += size
    assert worker_bytes(m, p.t, tile, workers, len(dealt)) == max(homes.values())


@pytest.mark.slow
@pytest.mark.parametrize("panels", [1, 10])
def test_what_is_alive_at_the_peak_is_projected(make_dataset: Any, panels: int) -> None:
    """Of arrays, in this process alone: blocks are small, so that tiles are what counts."""
    x = np.random.default_rng(0).standard_normal((512, 6), dtype=np.float32)
    table = nd.PlanTable(folds=2, shards=4, tile=400, block_rows=64)
    job = nd.Job(nd.Dataset(make_dataset(x, x[:, 0])), nd.NTKRandomFeatures(1200), alphas=(1.0, 2.0), plan=table)
    p = msgspec.structs.replace(nd.plan(job), panels=panels)
    peak = peak_bytes(lambda: nd.fit(p))
    parts = p.memory(process=2**18)  # Python's own objects
    parts["signs"] = p.driver_memory()["signs"]  # by which this process compares losses
    projected = sum(parts.values()) - parts.get("replaced tiles", 0)  # which are there only until a worker hears of it
    assert 0.85 * projected <= peak <= projected


@pytest.mark.slow
@pytest.mark.parametrize("scored", ["all", "one"])
def test_every_call_is_counted(make_dataset: Any, monkeypatch: pytest.MonkeyPatch, scored: str) -> None:
    """Where a call takes two seconds, of which one is another's, and nothing else takes any time."""
    x = np.random.default_rng(0).standard_normal((300, 6))
    some = {"holdout": np.arange(300) % 2} if scored == "one" else {}
    dataset = nd.Dataset(make_dataset(x, x[:, 0] ** 2, **some), **({"holdout": "holdout"} if some else {}))
    table = nd.PlanTable(folds=None if some else 3, shards=6, tile=20)
    job = nd.Job(dataset, nd.NTKRandomFeatures(50), alphas_per_row=(1e-4, 1e-2, 1.0), plan=table)
    p = msgspec.structs.replace(nd.plan(job), panels=2)
    calls: Counter[str] = Counter()
    phase = ["equations"]

    class Counted(TilePlacement):
        def __call__(self, *args: Any) -> Any:
            calls.update(phase)
            return super().__call__(*args)

        def beside(self, *args: Any) -> Any:
            calls.update(phase)
            return super().beside(*args)

    @contextmanager
    def watch(name: str, rows: int) -> Iterator[Any]:
        phase[0] = "solve" if name == "factorisations" else "equations"
        yield lambda count: None

    monkeypatch.setattr("ntkdist.ridge.tiled.TilePlacement", Counted)
    assert len(nd.fit(p, watch=watch).cv.alphas) == 3
    seconds = dict.fromkeys(Rates._fields, 0.0) | {"syrk": np.inf, "task": 2.0}
    monkeypatch.setattr(estimate, "measured", lambda *_: Rates(**seconds))
    monkeypatch.setattr(estimate, "of_solver", lambda rates, _: rates)
    found = estimate.cost(p, resources(None))["seconds_of"]
    slots = min(resources(None).tasks_at_once, p.shards)
    assert found["solve"] == calls["solve"]
    assert found["equations"] == calls["equations"] + p.panels * p.shards / slots
