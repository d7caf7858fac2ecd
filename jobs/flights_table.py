"""Inputs and target from the flights archive: time of day and of week, distance, and both airports' coordinates.

    python jobs/flights_table.py SOURCE.npz OUT.npz [--rows N]

SOURCE holds `minute` (since 2001-01-01 00:00), `distance`, `origin`, `destination`, `delay` and `airport_lat`,
`airport_lon` by airport code, as made from the table of the npm package vega-datasets (data/flights-3m.parquet).
Delays are clipped to −44…277 minutes, their 0.1 and 99.9 percentiles.
"""

import click
import numpy as np


@click.command()
@click.argument("source")
@click.argument("out")
@click.option("--rows", type=int, help="Random rows to keep; all by default.")
def main(source: str, out: str, rows: int | None) -> None:
    with np.load(source) as f:
        keep = np.arange(len(f["minute"]))
        if rows:
            keep = np.sort(np.random.default_rng(0).choice(len(keep), rows, replace=False))
        minute, a, b = f["minute"][keep], f["origin"][keep], f["destination"][keep]
        lat, lon = f["airport_lat"], f["airport_lon"]
        columns = (
            minute % 1440,
            minute // 1440 % 7,
            minute // 1440,
            f["distance"][keep],
            lat[a],
            lon[a],
            lat[b],
            lon[b],
        )
        delay = np.clip(f["delay"][keep], -44, 277)
    np.savez(out, x=np.stack(columns, axis=1).astype(np.float32), y=delay.astype(np.float32))


if __name__ == "__main__":
    main()
