"""Checkpoints: finished shards are kept, so that a run that was interrupted continues from them to the same bits.

A checkpoint is a directory, or a prefix of an object store.  It holds ``plan.json``, the resolved plan; the fitted
scaling and feature map; and the sum of every finished shard, named by a digest of its content: the job, the data, the
scaling, the map, the fold and the rows.

Processes may write the same value at the same time.  Each writes a group with a name of its own; the group that counts
is the one in the small ``.kept`` file, which only one process can create.
"""

import functools
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

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

T = TypeVar("T")
ArraysByName = dict[str, NDArray[Any]]
PART, STATE = "ntkdist.part", "ntkdist.state"
PROGRESS = ("shard-", "iterate-", "round-")


@dataclass(frozen=True)
class Kept:
    """The kept sums of shards; a task loads and saves its own."""

    place: str
    of: str  # digest of everything but the rows
    kind: type[NormalEquations] | type[TileSums] = NormalEquations

    def tiles(self, tile: int, panel: Sequence[Place]) -> "Kept":
        """Return the kept sums of some tiles."""
        return Kept(self.place, digest(self.of, tile, panel), TileSums)

    def state(self, *of: object) -> "KeptState":
        """Return the kept state of iterations, which depend on ``of`` too."""
        return KeptState(self.place, digest(self.of, *of))

    def load(self, shard: Shard) -> Part | None:
        """Load the sum of a shard; None if it is not finished, or damaged."""
        if (group := _load(self.place, self._name(shard), functools.partial(_read_group, PART))) is None:
            return None
        arrays, attrs = group
        return Part(self.kind.of_arrays(arrays), replace(Tally(**attrs["tally"]), resumed=1))

    def save(self, shard: Shard, part: Part) -> None:
        """Keep the sum of a shard, unless another task has kept it meanwhile.

        Raises StoreError if it cannot be written, as on a full disk.
        """
        counted = asdict(replace(part.tally, read_seconds=0.0, work_seconds=0.0, workers={}, worked={}))
        arrays: ArraysByName = part.total.arrays()

        def write(url: str) -> None:
            _write_group(PART, url, arrays, {"tally": counted})

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
    """The kept state of iterations; one process saves it, each time in place of the last."""

    place: str
    of: str  # digest of all that the iterations depend on

    @property
    def _name(self) -> str:
        return f"iterate-{self.of}"

    def load(self) -> ArraysByName | None:
        """Load the arrays that were saved last; None if there are none, or one is damaged."""
        if (group := _load(self.place, self._name, functools.partial(_read_group, STATE))) is None:
            return None
        arrays, attrs = group
        return {k: np.zeros(shape, dtype) for k, (shape, dtype) in attrs["empty"].items()} | arrays

    def save(self, arrays: ArraysByName) -> None:
        """Keep arrays in place of those before; raise StoreError if they cannot be written."""
        marker = storage.join(self.place, f"{self._name}.kept")
        before, mine = storage.read_text(marker), f"{self._name}-{uuid.uuid4().hex}.zarr"
        empty = {k: (array.shape, array.dtype.name) for k, array in arrays.items() if not array.size}
        full = {name: array for name, array in arrays.items() if array.size}
        _write_group(STATE, storage.join(self.place, mine), full, {"empty": empty})
        storage.write_text(marker, mine)
        if before:
            storage.remove(storage.join(self.place, before))


@dataclass(frozen=True)
class KeptRounds:
    """The kept steps of a search for a metric: its rounds by number, and what follows them by name."""

    place: str

    def load(self, name: str) -> ArraysByName | None:
        """Load the arrays of a step; None if it is not finished, or damaged."""
        group = _load(self.place, f"round-{name}", functools.partial(_read_group, STATE))
        return None if group is None else group[0]

    def save(self, name: str, arrays: ArraysByName) -> None:
        """Keep the arrays of a step; raise StoreError if they cannot be written."""
        _keep(self.place, f"round-{name}", lambda url: _write_group(STATE, url, arrays, {}))


def _keep(place: str, name: str, write: Callable[[str], None]) -> str:
    """Write a group and claim a name for it, unless another process was first; return the URL of the kept group."""
    mine = f"{name}-{uuid.uuid4().hex}.zarr"
    write(storage.join(place, mine))
    first = storage.claim(storage.join(place, f"{name}.kept"), mine)
    if first != mine:
        storage.remove(storage.join(place, mine))
    return storage.join(place, first)


def _load(place: str, name: str, read: Callable[[str], T]) -> T | None:
    """Read the group that is kept under a name; a damaged one is removed and counts as missing."""
    marker = storage.join(place, f"{name}.kept")
    if not (group := storage.read_text(marker)):
        return None
    url = storage.join(place, group)
    try:
        return read(url)
    except DataError:
        storage.remove(marker)
        storage.remove(url)
        return None


def _write_group(kind: str, url: str, arrays: ArraysByName, attrs: dict[str, Any]) -> None:
    """Write arrays and attributes as a group."""
    with zarr_groups.new_group(url, kind, attrs) as place:
        for name, array in arrays.items():
            zarr_groups.write_whole(place, name, array)


def _read_group(kind: str, url: str) -> tuple[ArraysByName, dict[str, Any]]:
    """Read the arrays and the attributes of a group."""
    _, attrs = zarr_groups.read_attributes(url, (kind,))
    return {name: zarr_groups.read_whole(url, name) for name in attrs["arrays"]}, attrs


@contextmanager
def open_checkpoint(place: str, job: Job, resolve: Callable[[Plan | None], Plan]) -> Iterator[Plan]:
    """Open or create a checkpoint, and yield the plan of a job; what decides the bits is as the checkpoint has it.

    ``resolve`` makes the plan, given the kept one if there is one; without a ``place`` there is no checkpoint.  A run
    that fails before a shard or an iterate is kept leaves none.  Raises StoreError if the checkpoint is of another job,
    or of the same job on other data.
    """
    if not place:
        yield resolve(None)
        return
    p = _resolved(place, job, resolve)
    try:
        yield p
    except BaseException:
        with suppress(StoreError):  # the store may be what failed
            if not any(name.startswith(PROGRESS) and name.endswith(".kept") for name in storage.names(place)):
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
    """Load the fitted scaling and map, or make and keep them; return them as equations without a fold, and the `Kept`.

    Without a ``place``, nothing is kept.
    """
    if not place:
        return prepare(), None
    empty: Equations | None = _load(place, "prepared", store.load)
    if empty is None:
        made = prepare()
        kept: Equations = store.load(_keep(place, "prepared", lambda url: store.save(made, url)))
        same = kept.features == made.features
        empty = replace(kept, features=made.features) if same else kept  # the arrays may be large: hold them once
    begun_as = json.loads(storage.read_text(storage.join(place, "plan.json")) or "")["digest"]  # maybe by older code
    of = digest(
        *(begun_as, p.folds, p.block_rows, p.dtype, p.skip),
        *(empty.features.digest(), empty.preprocessing.digest()),
    )
    return empty, Kept(place, of)
