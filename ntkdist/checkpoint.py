"""Finished shards kept, so that a run that was cut off, at any moment, goes on from there to the same bits.

A checkpoint is a directory or what is below a URL: ``plan.json``, what was resolved; ``prepared.zarr``, the scaling and
the feature map as fitted; and the sum of every finished shard, named by its content: the job, the data, the scaling,
the map, the fold and the rows.  Tasks that finish the same shard at once each write a group of their own; the one that
first writes the shard's marker, of which there can be one only, is the one that counts.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

import msgspec
import numpy as np

from ntkdist import groups, places, store
from ntkdist.errors import DataError, StoreError
from ntkdist.features import AnyMap
from ntkdist.model import Equations
from ntkdist.plan import Plan, sums_digest
from ntkdist.preprocess import Preprocessing
from ntkdist.reduce import Part, Shard
from ntkdist.spec import decode, digest
from ntkdist.sums import NormalEquations, Tally

PART = "ntkdist.part"
RESOLVED = ("folds", "shards", "fan_in", "block_rows", "threads", "dtype")


@dataclass(frozen=True)
class Kept:
    """Where the sums of shards are kept, and what they are sums of; a task loads or saves its own."""

    place: str
    of: str  # digest of everything but the rows

    def load(self, shard: Shard) -> Part | None:
        """The sum, if it was finished; one that is damaged counts as missing."""
        if (name := places.read_text(self._marker(shard))) is None:
            return None
        url = places.join(self.place, name)
        try:
            _, attrs = groups.read_attributes(url, (PART,))
            arrays = {name: groups.read_whole(url, name) for name in ("gram", "cross", "inner")}
        except DataError:
            places.remove(self._marker(shard))
            places.remove(url)
            return None
        total = NormalEquations(arrays["gram"], arrays["cross"], arrays["inner"], symmetric=False)
        return Part(total, replace(Tally(**attrs["tally"]), resumed=1))

    def save(self, shard: Shard, part: Part) -> None:
        """Keep a sum; if another task has kept the same one meanwhile, that is the one kept.

        Raises
        ------
        StoreError
            If it cannot be written, as on a full disk.
        """
        counted = asdict(replace(part.tally, read_seconds=0.0, work_seconds=0.0, workers={}))
        total: NormalEquations = part.total
        mine = f"{self._name(shard)}-{uuid.uuid4().hex}.zarr"
        try:
            with groups.new_group(places.join(self.place, mine), PART, {"tally": counted}) as url:
                for name, array in (("gram", np.tril(total._gram)), ("cross", total._cross), ("inner", total._inner)):
                    groups.write_whole(url, name, array)
            if places.claim(self._marker(shard), mine) != mine:
                places.remove(places.join(self.place, mine))
        except (OSError, StoreError) as error:
            raise StoreError(
                f"{self.place}: a finished sum of {total.__sizeof__() / 1e6:.0f} MB cannot be kept ({error}); "
                "make room, or give another [plan] checkpoint, and run again: what was kept is not lost"
            ) from error

    def _name(self, shard: Shard) -> str:
        return f"shard-{digest(self.of, shard.group, shard.spans)}"

    def _marker(self, shard: Shard) -> str:
        return places.join(self.place, f"{self._name(shard)}.kept")


@contextmanager
def begun(place: str, p: Plan) -> Iterator[Plan]:
    """Start or go on: the plan, with what decides its bits as the checkpoint has it; without a place, as it is.

    What fails before a shard is kept leaves no checkpoint.

    Raises
    ------
    StoreError
        If the checkpoint is of another job, or of the same job on other data.
    """
    if not place:
        yield p
        return
    p = _resolved(place, p)
    try:
        yield p
    except BaseException:
        with suppress(StoreError):  # as where the store is what failed
            if not any(name.endswith(".kept") for name in places.names(place)):
                places.remove(place)
        raise


def _resolved(place: str, p: Plan) -> Plan:
    name, url = sums_digest(p.job), places.join(place, "plan.json")
    found = json.loads(places.claim(url, json.dumps({"digest": name, "plan": msgspec.to_builtins(p)})))
    if found["digest"] != name:
        raise StoreError(
            f"{place} is the checkpoint of another job or of other data ({found['digest']}, this job is {name}); "
            "choose another checkpoint, or remove it"
        )
    before: Plan = decode(found["plan"], Plan, url)
    return msgspec.structs.replace(p, **{field: getattr(before, field) for field in RESOLVED})


def prepared(place: str, p: Plan, prepare: Callable[[], tuple[Preprocessing, AnyMap]]) -> tuple[Equations, Kept | None]:
    """Scaling and map, as kept or else made now and kept, as equations without a fold; and where shards are kept."""
    if not place:
        pre, features = prepare()
        return Equations([], features, pre, p.dtype, p.scored), None
    url = places.join(place, "prepared.zarr")
    if not groups.finished(url):
        pre, features = prepare()
        store.save(Equations([], features, pre, p.dtype, p.scored), url)
    empty: Equations = store.load(url)
    of = digest(
        sums_digest(p.job), p.folds, p.block_rows, empty.features.digest(), empty.preprocessing.digest(), p.dtype
    )
    return empty, Kept(place, of)


def remove(place: str) -> None:
    """Remove a checkpoint whose run is complete."""
    places.remove(place)
