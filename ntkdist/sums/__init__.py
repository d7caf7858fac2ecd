"""Values with ``+`` that a pass over the data adds up."""

from ntkdist.sums.cross import CrossSums
from ntkdist.sums.held_out import HeldOut
from ntkdist.sums.metrics import Metrics
from ntkdist.sums.moments import Moments
from ntkdist.sums.normal import NormalEquations
from ntkdist.sums.rowwise import Rowwise
from ntkdist.sums.sample import RowSample
from ntkdist.sums.tally import Tally
from ntkdist.sums.tiles import TileSums

__all__ = [
    "CrossSums",
    "HeldOut",
    "Metrics",
    "Moments",
    "NormalEquations",
    "RowSample",
    "Rowwise",
    "Tally",
    "TileSums",
]
