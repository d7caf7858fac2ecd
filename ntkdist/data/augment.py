"""Augmentation of images as rows: each image enters a sum with transformed copies of itself."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist import random
from ntkdist.data.dataset import Layout, Rows
from ntkdist.errors import SpecError
from ntkdist.spec import Spec

COPY = 1004  # key of the random stream of copies: a layer that no map uses
DOWN, ACROSS, FLIP = range(3)  # roles of that stream, of each copy
SHARE = 8  # of a side, that crops are shifted by at most


class Augment(Spec, frozen=True, tag=False, repr_omit_defaults=True):
    """The ``[augment]`` of a job: copies of every image that are added to the sums as further rows of its fold.

    An image of weight w and its copies weigh w together, each the same: sums, standard errors, and penalties per row
    are of the scale of the n images, which the copies do not make more of.  What is fitted before the sums (scaling,
    landmarks, whitening) sees the images alone, and so do the errors that a penalty is chosen by.  For these, scored
    folds have a second sum, of the images alone: twice the Grams in the process that solves, with a holdout one more.

    The copies are the image mirrored left to right, if ``flips``, and ``crops`` shifted ones.  A shift is by −``shift``
    to ``shift`` whole pixels down, and as many across, all equally likely; with ``flips``, a crop is mirrored with
    probability 1/2.  Pixels from outside are reflected at the edge: zeros would draw an edge that no image has, of
    another grey for every scaling.  A copy depends on the position of its image in the dataset, its number and the
    seed alone, so that shards, workers and continued runs make the same.

    Parameters
    ----------
    flips : bool
        `CNTKRandomFeatures` with ``flips``, which averages over both images itself, gains nothing from it.
    crops : int
    shift : int, optional
        Pixels; an eighth of each side, but at least one, if absent.
    seed : int
    """

    flips: bool = False
    crops: Annotated[int, Meta(ge=0)] = 0
    shift: Annotated[int, Meta(ge=1)] | None = None
    seed: int = 0

    def validate(self) -> None:
        if self.shift is not None and not self.crops:
            raise SpecError(f"augment.shift is {self.shift}, but there are no crops to shift; give crops, such as 2")

    @property
    def copies(self) -> int:
        """The number of rows that an image becomes, itself counted; 1 for no augmentation."""
        return 1 + self.flips + self.crops

    def check(self, layout: Layout, store: str) -> None:
        """Refuse rows that are no images, and shifts that reflection does not reach, by SpecError."""
        if self.copies == 1:
            return
        shape = layout.input_shape
        if layout.sparse or len(shape) != 3:
            rows = "sparse rows" if layout.sparse else f"rows of shape {shape}"
            raise SpecError(
                f"augment makes copies of images (rows, height, width, channels), but {store} has {rows}; leave it out"
            )
        if self.shift is not None and self.shift >= min(shape[:2]):
            raise SpecError(
                f"augment.shift is {self.shift}, but the images of {store} have {shape[0]} x {shape[1]} pixels, "
                f"and are reflected once at their edges; expected less than {min(shape[:2])}"
            )

    def each(self, rows: Rows, copies: Iterable[int]) -> Iterator[Rows]:
        """Yield some copies of rows of images, numbered from 0 for the images themselves, each with its share of the
        weight.
        """
        weight = (np.ones(rows.n) if rows.weight is None else rows.weight) / self.copies
        for copy in copies:
            yield rows._replace(x=self._copy(rows.x, rows.places, copy), weight=weight)

    def _copy(self, x: Any, places: NDArray[np.int64], copy: int) -> NDArray[Any]:
        if copy == 0:
            return x
        if self.flips and copy == 1:
            return np.ascontiguousarray(x[:, :, ::-1])
        down, across = (self._pixels(places, copy, role, x.shape[1 + role]) for role in (DOWN, ACROSS))
        if self.flips:
            mirrored = self._uniforms(places, copy, FLIP) < 0.5
            across[mirrored] = x.shape[2] - 1 - across[mirrored]
        return x[np.arange(len(x))[:, None, None], down[:, :, None], across[:, None, :]]

    def _pixels(self, places: NDArray[np.int64], copy: int, role: int, side: int) -> NDArray[np.int64]:
        """Return the pixel that each pixel of a shifted side shows, (n, side)."""
        most = min(max(1, side // SHARE), side - 1) if self.shift is None else self.shift
        by = np.floor(self._uniforms(places, copy, role) * (2 * most + 1)).astype(np.int64) - most
        pixels = np.abs(np.arange(side) + by[:, None])
        return np.where(pixels < side, pixels, 2 * (side - 1) - pixels)

    def _uniforms(self, places: NDArray[np.int64], copy: int, role: int) -> NDArray[np.float64]:
        return random.uniforms_of(places, self.seed, COPY, 3 * copy + role)
