"""Finished shards kept, so that a run that was cut off, at any moment, goes on from there to the same bits.

A checkpoint is a directory, or what is below a URL: ``plan.json``, what was resolved; the scaling and the feature map
as fitted; and the sum of every finished shard, named by its content: the job, the data, the scaling, the map, the fold
and the rows.  Who makes the same thing as somebody else at the same time writes a group of his own; it counts if he
is the first to write the small ``.kept`` file that names it, and no more than one can be.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster.shards import Part
from ntkdist.cluster.tally import Tally
from ntkdist.data import storage, zarr_groups
from ntkdist.data.dataset import Shard
from ntkdist.errors import DataError, StoreError
from ntkdist.planning.job import Job, difference, identity, of_sums, sums_digest
from ntkdist.planning.plan import Plan
from ntkdist.ridge import store
from ntkdist.ridge.model import Equations
from ntkdist.spec import decode, digest
from ntkdist.sums import NormalEquations, TileSums
from ntkdist.sums.tiles import Place

PART, STATE = "ntkdist.part", "ntkdist.state"
KEPT = ("shard-", "iterate-")


@dataclass(frozen=True)
class Kept:
    """Where the sums of shards are kept, and what they are sums of; a task loads or saves its own."""

    place: str
    of: str  # digest of everything but the rows
    kind: type[NormalEquations] | type[TileSums] = NormalEquations

    def tiles(self, tile: int, panel: Sequence[Place]) -> "Kept":
        """Where the sums of some tiles are kept."""
        return Kept(self.place, digest(self.of, tile, panel), TileSums)

    def state(self, *of: object) -> "KeptState":
        """Where the state of iterations is kept that depend on more beside."""
        return KeptState(self.place, digest(self.of, *of))

    def load(self, shard: Shard) -> Part | None:
        """The sum, if it was finished; one that is damaged counts as missing."""
        name = self._name(shard)
        if not (url := _kept(self.place, name)):
            return None
        try:
            _, attrs = zarr_groups.read_attributes(url, (PART,))
            arrays = {name: zarr_groups.read_whole(url, name) for name in attrs["arrays"]}
        except DataError:
            _forget(self.place, name)
            return None
        return Part(self.kind.of_arrays(arrays), replace(Tally(**attrs["tally"]), resumed=1))

    def save(self, shard: Shard, part: Part) -> None:
        """Keep a sum; if another task has kept the same one meanwhile, that is as good.

        Raises
        ------
        StoreError
            If it cannot be written, as on a full disk.
        """
        counted = asdict(replace(part.tally, read_seconds=0.0, work_seconds=0.0, workers={}, worked={}))
        arrays: dict[str, NDArray[np.float64]] = part.total.arrays()
        attrs = {"tally": counted, "arrays": list(arrays)}

        def write(url: str) -> None:
            with zarr_groups.new_group(url, PART, attrs) as place:
                for name, array in arrays.items():
                    zarr_groups.write_whole(place, name, array)

        try:
            _keep(self.place, self._name(shard), write)
        except StoreError as error:
            nbytes = sum(array.nbytes for array in arrays.values())
            raise StoreError(
                f"{self.place}: a finished sum of {nbytes / 1e6:.0f} MB cannot be kept "
                f"({error.__cause__ or error}); make room, or give another [plan] checkpoint, and run again: what was "
                "kept is not lost"
            ) from error

    def _name(self, shard: Shard) -> str:
        return f"shard-{digest(self.of, shard.group, shard.spans)}"


@dataclass(frozen=True)
class KeptState:
    """Where the state of iterations is kept, and what of; one process saves it, each time in place of the last."""

    place: str
    of: str  # digest of all that the iterations depend on

    def load(self) -> dict[str, NDArray[Any]] | None:
        """The arrays that were saved last; if they are damaged, none were."""
        name = f"iterate-{self.of}"
        if not (url := _kept(self.place, name)):
            return None
        try:
            _, attrs = zarr_groups.read_attributes(url, (STATE,))
            whole = {k: zarr_groups.read_whole(url, k) for k in attrs["arrays"]}
        except DataError:
            _forget(self.place, name)
            return None
        return {k: np.zeros(shape, dtype) for k, (shape, dtype) in attrs["empty"].items()} | whole

    def save(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Keep arrays in place of those before.

        Raises
        ------
        StoreError
            If they cannot be written, as on a full disk.
        """
        marker = storage.join(self.place, f"iterate-{self.of}.kept")
        before, mine = storage.read_text(marker), f"iterate-{self.of}-{uuid.uuid4().hex}.zarr"
        empty = {k: (array.shape, array.dtype.name) for k, array in arrays.items() if not array.size}
        with zarr_groups.new_group(storage.join(self.place, mine), STATE, {"empty": empty}) as url:
            for name in arrays.keys() - empty:
                zarr_groups.write_whole(url, name, arrays[name])
        storage.write_text(marker, mine)
        if before:
            storage.remove(storage.join(self.place, before))


def _keep(place: str, name: str, write: Callable[[str], None]) -> None:
    """Write a group and its marker; if somebody else has kept the same meanwhile, that is the one kept."""
    mine = f"{name}-{uuid.uuid4().hex}.zarr"
    write(storage.join(place, mine))
    if storage.claim(storage.join(place, f"{name}.kept"), mine) != mine:
        storage.remove(storage.join(place, mine))


def _kept(place: str, name: str) -> str:
    """The group that was kept under a name, or ''."""
    found = storage.read_text(storage.join(place, f"{name}.kept"))
    return storage.join(place, found) if found else ""


def _forget(place: str, name: str) -> None:
    """Remove what was kept under a name."""
    url = _kept(place, name)
    storage.remove(storage.join(place, f"{name}.kept"))
    if url:
        storage.remove(url)


@contextmanager
def open_checkpoint(place: str, job: Job, resolve: Callable[[Plan | None], Plan]) -> Iterator[Plan]:
    """Start or go on: yield the plan of a job, with what decides its bits as the checkpoint has it.

    What fails before a shard or an iterate is kept leaves no checkpoint.

    Parameters
    ----------
    place : str
        "" for no checkpoint.
    job : Job
    resolve : callable
        Resolves the job to a plan, given the plan that was kept, if any was.

    Raises
    ------
    StoreError
        If the checkpoint is of another job, or of the same job on other data.
    """
    if not place:
        yield resolve(None)
        return
    p = _resolved(place, job, resolve)
    try:
        yield p
    except BaseException:
        with suppress(StoreError):  # as where the store is what failed
            if not any(name.startswith(KEPT) and name.endswith(".kept") for name in storage.names(place)):
                storage.remove(place)
        raise


def _resolved(place: str, job: Job, resolve: Callable[[Plan | None], Plan]) -> Plan:
    """Resolve a job by the plan that is kept; keep it if none is, unless another process is faster."""
    url = storage.join(place, "plan.json")
    if (text := storage.read_text(url)) is not None:
        kept = _kept_plan(place, url, text, job)
        storage.sweep(place)
        return resolve(kept)
    if not storage.empty(place):
        raise StoreError(f"{place} holds something that is not a checkpoint; choose another, or remove it")
    mine = resolve(None)
    text = storage.claim(url, json.dumps({"digest": sums_digest(job), "plan": msgspec.to_builtins(mine)}))
    first = _kept_plan(place, url, text, job)
    storage.sweep(place)
    return mine if first == mine else resolve(first)


def _kept_plan(place: str, url: str, text: str, job: Job) -> Plan:
    """Decode the plan in a checkpoint, and refuse that of another job."""
    try:
        builtins = json.loads(text)["plan"]
        builtins["job"]["preprocess"].setdefault("clip", "none")  # as it was before there was a choice
    except (ValueError, LookupError, TypeError):
        raise StoreError(f"{url} is damaged; remove the checkpoint and start anew") from None
    plan: Plan = decode(builtins, Plan, url)
    theirs, ours = identity(of_sums(plan.job), plan.layout), identity(of_sums(job), job.dataset.layout())
    if theirs["digest"] != ours["digest"]:
        raise StoreError(
            f"{place} is the checkpoint of another job or of other data{difference(theirs, ours)}; "
            "choose another checkpoint, or remove it"
        )
    return plan


def prepared(place: str, p: Plan, prepare: Callable[[], Equations]) -> tuple[Equations, Kept | None]:
    """Equations without a fold, with scaling and map, as kept or else made now and kept; and where shards are kept."""
    if not place:
        return prepare(), None
    if (empty := _prepared_before(place)) is None:
        made = prepare()
        _keep(place, "prepared", lambda url: store.save(made, url))
        empty = store.load(_kept(place, "prepared"))
        if empty.features == made.features:
            empty = replace(empty, features=made.features)  # which may be large: one of two
    begun_as = json.loads(storage.read_text(storage.join(place, "plan.json")) or "")["digest"]  # maybe by older code
    of = digest(
        *(begun_as, p.folds, p.block_rows, p.dtype, p.skip),
        *(empty.features.digest(), empty.preprocessing.digest()),
    )
    return empty, Kept(place, of)


def _prepared_before(place: str) -> Equations | None:
    """What is kept, unless it is damaged: then it counts as missing, as a sum does."""
    try:
        return store.load(url) if (url := _kept(place, "prepared")) else None
    except DataError:
        _forget(place, "prepared")
        return None


def remove(place: str) -> None:
    """Remove a checkpoint whose run is complete."""
    storage.remove(place)
