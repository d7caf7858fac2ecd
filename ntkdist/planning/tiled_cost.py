"""Bytes and seconds of a fit in tiles."""

from ntkdist import backend, random
from ntkdist.planning.dense_cost import GramCost
from ntkdist.planning.plan import Plan
from ntkdist.planning.rates import Rates, median_seconds
from ntkdist.solvers.tiled import solve_tiles, work
from ntkdist.sums.tiles import nbytes, places, runs


class TilesCost(GramCost):
    """The cost of a fit that sums tiles, sends them to the workers that own them, and solves there, task by task."""

    @staticmethod
    def timed(rates: Rates, p: Plan) -> Rates:
        return rates._replace(solved=_solved(p))

    @property
    def network_bytes(self) -> int:
        """Bytes of added sums, of tiles sent to their owners, and of a factor's tiles sent to all that use them."""
        p, workers = self.p, self.machines.workers
        n, everything = runs(p.m, p.tile), sum(nbytes(p.m, p.t, p.tile))
        copies = sum((n - k) * min(workers - 1, n - 1 - k) for k in range(n))
        away = p.groups * everything * (workers - 1) // workers
        return self._added * everything + away + self.solves * copies * 8 * (p.m // n) ** 2

    def seconds(self) -> dict[str, float]:
        """Estimate the seconds of every phase."""
        p, rates, workers, sets, solves = self.p, self.rates, self.machines.workers, self.p.sets, self.solves
        n, each = runs(p.m, p.tile), len(places(p.m, p.tile))
        operations, longest, calls = work(n)
        # Workers wait for one another: at most as long as if all but one did while the longest chain is worked off.
        spread = 1 / workers + (1 - 1 / workers) * longest / operations
        tasks = sets * (each - 1) + solves * calls + (solves - 1) * n * (n + 1) // 2
        solve = solves * rates.solved * spread + sets * p.groups / 2 * rates.shard / workers
        return self._prepare() | {
            "equations": self.summing + p.groups * (2 * each + p.panels + n) * rates.task / 2,
            "solve": solve + tasks * rates.task / 2 + self.network_bytes * rates.moved,
        }


def _solved(p: Plan) -> float:
    """Time solving by three runs of columns or fewer, no longer than keep all threads at work."""
    backend.use_threads(p.threads)
    n, length = runs(p.m, p.tile), min(p.tile, p.m, backend.TILE * p.threads)
    few = min(n, 3)
    z = random.normals((2 * few * length, few * length), 0, 0, 0)
    gram = z.T @ z
    each = range(few)
    tiles = {(i, j): gram[i * length :, j * length :][:length, :length].copy() for i in each for j in each if j <= i}
    tiles |= {(few, j): gram[: p.t, j * length :][:, :length] for j in each}
    one = median_seconds(lambda: solve_tiles(tiles, few * length, length, 1.0, lambda place, call, *args: call(*args)))
    return one * work(n).operations / work(few).operations * (p.m / n / length) ** 3
