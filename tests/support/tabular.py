"""A table with a column of every kind, as csv, and what each row's target is made of."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import ntkdist as nd

N = 600
SHOPS = 40
COLUMNS = ("size", "city", "shop", "code", "day", "open", "rate")


def frame(n: int = N, seed: int = 0, classes: bool = False) -> pd.DataFrame:
    """Rows with numbers, few and many names, integers that are names, dates, booleans, and gaps in all but the last."""
    rng = np.random.default_rng(seed)
    day = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 24 * 400, n), unit="h")
    data = pd.DataFrame(
        {
            "size": rng.lognormal(size=n),
            "city": rng.choice(["Rome", "Oslo", "Bern"], n),
            "shop": [f"shop {i}" for i in rng.integers(0, SHOPS, n)],
            "code": rng.choice([7, 12, 30], n),
            "day": day.as_unit("s"),
            "open": rng.random(n) < 0.5,
            "rate": rng.normal(size=n),
        }
    )
    effect = np.random.default_rng(99).normal(size=SHOPS)[data["shop"].str[5:].astype(int)]
    y = np.log(data["size"]) + 2 * (data["city"] == "Oslo") + 2 * effect + (data["code"] == 12) + data["open"]
    y = y + np.sin(2 * np.pi * data["day"].dt.hour / 24) + 0.3 * rng.normal(size=n)
    for column in ("size", "day"):
        data[column] = data[column].mask(pd.Series(rng.random(n) < 0.1))
    data["city"] = data["city"].mask(pd.Series(rng.random(n) < 0.1))
    data["y"] = np.where(y > y.median(), "high", "low") if classes else y
    return data


def as_csv(path: Path, data: pd.DataFrame) -> Path:
    if "day" in data:
        data = data.assign(day=data["day"].dt.strftime("%Y-%m-%dT%H:%M:%S"))
    data.to_csv(path, index=False)
    return path


def converted(folder: Path, data: pd.DataFrame, name: str = "data", **options: Any) -> str:
    """Convert a table in the order of its rows, in twelve partitions, and return the dataset's path."""
    source = as_csv(folder / f"{name}.csv", data)
    options = {"target": ["y"], "category": ["code"], "shuffle_seed": None, "rows_per_partition": 50, **options}
    nd.convert(str(source), str(folder / f"{name}.zarr"), **options)
    return str(folder / f"{name}.zarr")
