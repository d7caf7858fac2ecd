"""Folds that an estimator's caller gives: splits in scikit-learn's sense, or groups."""

from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, check_cv

from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset
from ntkdist.errors import InputError
from ntkdist.ridge.estimators.inputs import is_outside

MOST_FOLDS = 100  # m² numbers each
NONE = -1  # in place of a fold, of rows that no split tests


class Dealt(NamedTuple):
    """Rows with their folds."""

    rows: Arrays | Dataset
    folds: int
    scored: tuple[int, ...] | None = None  # the folds that are scored, if not all
    dealt_by: str = ""  # the argument that deals rows; "" for a hash of their values


def dealt(rows: Arrays, x: Any, cv: Any, folds: int, groups: Any, classifier: bool) -> Dealt:
    """Deal rows to the folds of ``cv``, or to as many as ``folds`` by their groups, or leave them to a hash.

    Rows that no split tests become a fold that is not scored.

    Raises
    ------
    InputError
        If the splits are no folds: a row is tested twice, or a split does not train on all rows that it does not test;
        or if they are more than `MOST_FOLDS`.
    """
    if cv is None and groups is None:
        return Dealt(rows, folds)
    count = int(rows.x.shape[0])
    if groups is not None and len(groups := np.asarray(groups)) != count:
        raise InputError(f"groups has {len(groups)} entries but X has {count} rows; give one for every row")
    by, cv = ("groups", folds) if cv is None else ("cv", cv)
    y = np.asarray(rows.y)
    splitter = (
        GroupKFold(cv)
        if groups is not None and isinstance(cv, int | np.integer)
        else check_cv(cv, y, classifier=classifier)
    )
    x = np.zeros((count, 1)) if is_outside(x) else x
    try:
        splits = list(islice(splitter.split(x, y, groups), MOST_FOLDS + 1))
    except TypeError as error:
        raise InputError(f"cv is {cv!r}, which gives no splits: {error}") from None
    if len(splits) > MOST_FOLDS:
        raise InputError(
            f"cv is {cv!r}, which gives more than {MOST_FOLDS} splits, each with sums of its own; give fewer, such as "
            "KFold(10)"
        )
    deal, tested = _as_folds(splits, count)
    rest = int((deal == NONE).any())  # as fold 0, because a metric is chosen by the last
    scored = tuple(range(rest, rest + tested)) if rest else None
    return Dealt(replace(rows, deal=deal + rest), tested + rest, scored, by)


def _as_folds(splits: list[Any], count: int) -> tuple[NDArray[np.int64], int]:
    """Return the split that tests each row, and the number of splits; refuse splits that are no folds."""
    deal = np.full(count, NONE)
    for k, (train, test) in enumerate(splits):
        train, test = (np.arange(count)[np.asarray(part)] for part in (train, test))
        if (twice := deal[test] != NONE).any():
            row = int(test[twice][0])
            raise InputError(
                f"cv tests row {row} in its splits {deal[row]} and {k}, but each row is in the sums of one fold; give "
                "splits whose test rows are disjoint, such as KFold or GroupKFold"
            )
        deal[test] = k
        others = np.setdiff1d(np.arange(count), test)
        if not np.array_equal(np.unique(train), others):
            raise InputError(
                f"split {k} of cv trains on {len(np.unique(train))} rows, but the rows that it does not test are "
                f"{len(others)}, and the sums of a training set are all sums less a fold's; give splits that train on "
                "all other rows, such as KFold or GroupKFold"
            )
    return deal, len(splits)
