"""Values with ``+`` that a pass over the data adds up, each beside the summand that makes it."""

from ntkdist.sums.equations import NormalEquations
from ntkdist.sums.metrics import Metrics
from ntkdist.sums.products import CrossSums
from ntkdist.sums.sample import RowSample
from ntkdist.sums.tiles import TileSums

__all__ = ["CrossSums", "Metrics", "NormalEquations", "RowSample", "TileSums"]
