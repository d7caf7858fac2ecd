"""Finished shards kept on disk, so that a run that was cut off, at any moment, goes on from there to the same bits.

A checkpoint is a directory: ``plan.json``, what was resolved; ``prepared.zarr``, the scaling and the feature map as
fitted; and one group for the sum of every finished shard, named by its content: the job, the data, the scaling, the
map, the fold and the rows.  Each appears whole or not at all, and is added once, by its place in the tree of sums.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist import groups, store
from ntkdist.errors import DataError, StoreError
from ntkdist.features import AnyMap
from ntkdist.model import Equations
from ntkdist.plan import Plan, gram_of, sums_digest
from ntkdist.preprocess import Preprocessing
from ntkdist.shards import Part, Shard
from ntkdist.spec import decode, digest
from ntkdist.sums import NormalEquations, Tally, TileSums
from ntkdist.sums.tiles import Place

PART = "ntkdist.part"
RESOLVED = ("folds", "shards", "fan_in", "block_rows", "threads", "dtype", "tile", "skip")


@dataclass(frozen=True)
class Kept:
    """Where the sums of shards are kept, and what they are sums of; a task loads or saves its own."""

    place: str
    of: str  # digest of everything but the rows
    kind: type[NormalEquations] | type[TileSums] = NormalEquations

    def tiles(self, tile: int, panel: Sequence[Place]) -> "Kept":
        """Where the sums of some tiles are kept."""
        return Kept(self.place, digest(self.of, tile, panel), TileSums)

    def load(self, shard: Shard) -> Part | None:
        """The sum, if it was finished; one that is damaged counts as missing."""
        url = self._url(shard)
        if not groups.exists(url):
            return None
        try:
            _, attrs = groups.read_attributes(url, (PART,))
            arrays = {name: groups.read_whole(url, name) for name in attrs["arrays"]}
        except DataError:
            groups.remove(url)
            return None
        return Part(self.kind.of_arrays(arrays), replace(Tally(**attrs["tally"]), resumed=1))

    def save(self, shard: Shard, part: Part) -> None:
        """Keep a sum; if another task has kept the same one meanwhile, that is as good.

        Raises
        ------
        StoreError
            If it cannot be written, as on a full disk.
        """
        counted = asdict(replace(part.tally, read_seconds=0.0, work_seconds=0.0, workers={}))
        arrays: dict[str, NDArray[np.float64]] = part.total.arrays()
        attrs = {"tally": counted, "arrays": list(arrays)}
        try:
            with groups.new_group(self._url(shard), PART, attrs, writer=uuid.uuid4().hex) as url:
                for name, array in arrays.items():
                    groups.write_whole(url, name, array)
        except StoreError as error:
            if groups.exists(self._url(shard)):
                return
            nbytes = sum(array.nbytes for array in arrays.values())
            raise StoreError(
                f"{self.place}: a finished sum of {nbytes / 1e6:.0f} MB cannot be kept "
                f"({error.__cause__}); make room, or give another [plan] checkpoint, and run again: "
                "what was kept is not lost"
            ) from error

    def _url(self, shard: Shard) -> str:
        return str(Path(self.place) / f"shard-{digest(self.of, shard.group, shard.spans)}.zarr")


@contextmanager
def begun(place: str, p: Plan, settle: Callable[[Plan], Plan]) -> Iterator[Plan]:
    """Start or go on: the plan, with what decides its bits as the checkpoint has it; without a place, as it is.

    What fails before a shard is kept leaves no checkpoint.

    Parameters
    ----------
    place : str
    p : Plan
    settle : callable
        What else is to be resolved once, at the start.

    Raises
    ------
    StoreError
        If the checkpoint is of another job, or of the same job on other data.
    """
    if not place:
        yield settle(p)
        return
    p = _resolved(Path(place) / "plan.json", p, settle)
    try:
        yield p
    except BaseException:
        if not any(Path(place).glob("shard-*.zarr")):
            groups.remove(place)
        raise


def _resolved(path: Path, p: Plan, settle: Callable[[Plan], Plan]) -> Plan:
    name = sums_digest(p.job)
    if not path.exists():
        if groups.names(str(path.parent)):
            raise StoreError(f"{path.parent} holds something that is not a checkpoint; choose another, or remove it")
        p = settle(p)
        path.parent.mkdir(parents=True, exist_ok=True)
        groups.write_text(str(path), json.dumps({"digest": name, "plan": msgspec.to_builtins(p)}))
        return p
    try:
        found = json.loads(path.read_text())
        theirs, kept = found["digest"], found["plan"]
    except (ValueError, LookupError, TypeError):
        raise StoreError(f"{path} is damaged; remove the checkpoint and start anew") from None
    if theirs != name:
        raise StoreError(
            f"{path.parent} is the checkpoint of another job or of other data ({theirs}, this job is {name}); "
            "choose another checkpoint, or remove it"
        )
    groups.sweep(str(path.parent))
    before: Plan = decode(kept, Plan, str(path))
    fields = RESOLVED if gram_of(before.solver) == gram_of(p.solver) else (*RESOLVED, "solver")
    return msgspec.structs.replace(p, **{field: getattr(before, field) for field in fields})


def prepared(place: str, p: Plan, prepare: Callable[[], tuple[Preprocessing, AnyMap]]) -> tuple[Equations, Kept | None]:
    """Scaling and map, as kept or else made now and kept, as equations without a fold; and where shards are kept."""
    if not place:
        pre, features = prepare()
        return Equations([], features, pre, p.dtype, p.scored), None
    url = str(Path(place) / "prepared.zarr")
    if (empty := _kept_before(url)) is None:
        pre, features = prepare()
        try:
            store.save(Equations([], features, pre, p.dtype, p.scored), url, writer=uuid.uuid4().hex)
        except StoreError:
            if not groups.exists(url):  # by another process that runs the same job
                raise
        empty = store.load(url)
    of = digest(
        *(sums_digest(p.job), p.folds, p.block_rows, p.dtype, p.skip),
        *(empty.features.digest(), empty.preprocessing.digest()),
    )
    return empty, Kept(place, of)


def _kept_before(url: str) -> Equations | None:
    """What is kept, unless it is damaged: then it counts as missing, as a sum does."""
    try:
        return store.load(url) if groups.exists(url) else None
    except DataError:
        groups.remove(url)
        return None


def remove(place: str) -> None:
    """Remove a checkpoint whose run is complete."""
    groups.remove(place)
