"""Resolution of the device: whether a plan computes on GPUs, and the memory that it takes there.

All workers compute on GPUs, or none: results differ by rounding, and tasks are dealt out as if workers were alike.
"""

from typing import NamedTuple

import msgspec
import numpy as np

from ntkdist import gpu
from ntkdist.cluster.connect import Resources
from ntkdist.errors import ClusterError, NtkdistError, PlanTooLarge, SpecError
from ntkdist.planning.plan import FILLED, GB, Plan

LEAST_ROWS = 256  # of a block: with fewer, adding products takes longer than multiplying
LONGER = (
    16  # times a shard is of what it is on a CPU: bringing its m² sums to the host should take less than making them
)


class WhyNotGpu(NamedTuple):
    """A reason why a plan does not compute on GPUs, and a remedy."""

    kind: type[NtkdistError]
    what: str
    remedy: str

    def error(self, p: Plan) -> NtkdistError:
        return self.kind(f'[plan] device is "{p.job.plan.device}" but {self.what}; {self.remedy}')


def resolved(p: Plan, machines: Resources) -> Plan:
    """Return the plan on GPUs, in blocks that fit there, if its job asks for GPUs, or says "auto" and nothing is in the
    way.

    Raises
    ------
    SpecError, ClusterError, PlanTooLarge
        If the job asks for GPUs and they cannot be used, or workers are not alike.
    """
    if p.job.plan.device == "cpu":
        return p
    on_gpu = _on_gpu(p, machines)
    if obstacle := _obstacle(on_gpu, machines):
        if p.job.plan.device == "auto":
            return p
        raise obstacle.error(p)
    _check_alike(on_gpu, machines)
    return on_gpu


def check(p: Plan, machines: Resources) -> None:
    """Refuse a plan on GPUs that cannot run where it would, by SpecError, ClusterError or PlanTooLarge."""
    if p.device != "cpu":
        if obstacle := _obstacle(p, machines):
            raise obstacle.error(p)
        _check_alike(p, machines)


def why_not(p: Plan, machines: Resources) -> str:
    """Say why a plan computes on the CPU though its job says "auto" and workers have GPUs; '' otherwise."""
    if p.device != "cpu" or p.job.plan.device != "auto" or not any(machines.gpus):
        return ""
    obstacle = _obstacle(_on_gpu(p, machines), machines)
    return obstacle.what if obstacle else "its plan was resolved for that"


def memory(p: Plan) -> dict[str, int]:
    """Return the peak bytes of a task on its GPU, by part.

    A batch counts both mapping and multiplying, though one is over when the other begins: CuPy's pool keeps the blocks
    of either, which have other sizes.
    """
    size, m, panel, shape = np.dtype(p.dtype).itemsize, p.m, min(p.m, gpu.PANEL), p.mapped_shape
    row = p.features.gpu_row_bytes(shape, p.dtype)
    # Of several panels, the columns of one and those up to its end are copied to be contiguous; then their product.
    multiplied = size * (p.block_rows * (panel + m) * (m > panel) + panel * max(m, p.t + 1))
    several = 1 + p.weighs_rows  # beside features, their product with root weights
    return {
        "map": p.features.gpu_draw_bytes(shape, p.dtype) + p.features.learnt_bytes(shape, p.dtype),
        "accumulator": p.sum_bytes,
        "features": p.block_rows * (several * m + p.t + 2) * size,  # and targets, with a 1 and the root weight
        "batch": multiplied + min(p.block_rows * row, max(gpu.PIECE_BYTES, row)),
    }


def table(p: Plan, machines: Resources) -> str:
    """Describe the device of a plan, for a reader."""
    if p.device == "cpu":
        return f"cpu{(why := why_not(p, machines)) and f': {why}'}"
    return f"{p.device} (speed and time are a CPU's), a task {_parts(p)} of {_free_bytes(machines) / GB:.2f}"


def _on_gpu(p: Plan, machines: Resources) -> Plan:
    """Return the plan on GPUs, with longer shards and blocks halved until they fit, unless its job gives them."""
    wanted = p.job.plan.device
    p = msgspec.structs.replace(p, device=wanted if wanted == "gpu-tf32" else "gpu")
    if p.job.plan.shards is None:
        p = msgspec.structs.replace(p, shards=min(p.shards, max(2 * p.folds, p.shards // LONGER)))
    if p.job.plan.block_rows is None and any(machines.gpus):
        while p.block_rows >= 2 * LEAST_ROWS and sum(memory(p).values()) > FILLED * _free_bytes(machines):
            p = msgspec.structs.replace(p, block_rows=p.block_rows // 2)
    return p


def _obstacle(p: Plan, machines: Resources) -> WhyNotGpu | None:
    """Return the first obstacle to computing on GPUs, if any: the plan, the workers, or their memory."""
    if p.solver.sums != "gram":
        what = f"solver {type(p.solver).__name__} computes on the CPU only"
        return WhyNotGpu(SpecError, what, 'use solver Cholesky or Eigh, or device "cpu"')
    if p.layout.sparse or not p.features.runs_on_gpu(p.mapped_shape):
        rows = "sparse rows" if p.layout.sparse else f"rows of shape {p.mapped_shape}"
        what = f"{type(p.features).__name__} maps {rows} on the CPU only"
        return WhyNotGpu(SpecError, what, 'use another map, or device "cpu"')
    if not any(machines.gpus):
        what = "no worker sees a GPU through CuPy"
        return WhyNotGpu(ClusterError, what, "run where all do (pip install 'ntkdist[gpu]'), or set it to \"cpu\"")
    if sum(memory(p).values()) > (free := _free_bytes(machines)):
        what = f"the plan needs {_parts(p)} of a GPU where a task has {free / GB:.2f} GB free"
        remedy = 'lower n_components or block_rows, give each worker a GPU of its own, or set device to "cpu"'
        return WhyNotGpu(PlanTooLarge, what, remedy)
    return None


def _check_alike(p: Plan, machines: Resources) -> None:
    """Refuse workers that do not all compute in the same way, by ClusterError."""
    there = [one for one in machines.gpus if one]
    if len(there) < len(machines.gpus):
        what = f"only {len(there)} of {len(machines.gpus)} workers see a GPU through CuPy"
        raise WhyNotGpu(ClusterError, what, 'make workers alike, or set it to "cpu"').error(p)
    if any(one.tf32 != (p.device == "gpu-tf32") for one in there):
        does, do = ("does not round", "set") if p.device == "gpu-tf32" else ("rounds", "unset")
        what = f"CuPy {does} products to TF32 on a worker"
        raise WhyNotGpu(ClusterError, what, f"{do} CUPY_TF32 where the workers start").error(p)


def _free_bytes(machines: Resources) -> int:
    return min(one.free_bytes for one in machines.gpus if one)


def _parts(p: Plan) -> str:
    parts = memory(p)
    said = ", ".join(f"{name} {nbytes / GB:.2f}" for name, nbytes in parts.items())
    return f"{sum(parts.values()) / GB:.2f} GB ({said})"
