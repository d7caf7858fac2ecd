"""Saving and loading of all that a user fits: models, equations and estimators."""

from typing import Any

from ntkdist.ridge import store
from ntkdist.ridge.model import Equations, RidgeModel


def save(value: Any, url: str) -> None:
    """Write a model, equations or a fitted estimator to a new Zarr group, which appears when it is complete.

    Parameters
    ----------
    value : RidgeModel, Equations, NTKRidge, NTKRidgeCV or NTKRidgeClassifier
        An estimator is saved as its model, which every command takes, with its parameters and classes, the errors of
        its cross-validation and, if kept, the factor and the residuals; without its sums, ``choice_`` and
        ``cv_results_``.
    url : str
        A path, or the URL of an object store.

    Raises
    ------
    StoreError
        If ``url`` exists or cannot be written.
    SpecError
        If the value is of another kind, is not fitted, or has a parameter that is a Python object, such as a splitter.

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).standard_normal((200, 3))
    >>> ridge = nd.NTKRidge().fit(x, x[:, 0])
    >>> nd.save(ridge, "ridge.zarr")
    >>> bool((nd.load("ridge.zarr").predict(x) == ridge.predict(x)).all())
    True
    """
    if isinstance(value, RidgeModel | Equations):
        store.save(value, url)
        return
    from ntkdist.ridge.estimators import saving  # which imports scikit-learn

    attrs, arrays = saving.described(value)
    store.save(value.model_, url, attrs, arrays)


def load(url: str) -> Any:
    """Read a model, equations or an estimator.

    Parameters
    ----------
    url : str

    Returns
    -------
    RidgeModel, Equations or estimator
        As saved.

    Raises
    ------
    DataError
        If there is no complete group, or a chunk is missing or damaged.
    StoreError
        If a newer version wrote it, or this machine computes other features than the saved ones.
    """
    value, (attrs, arrays) = store.load(url), store.of_estimator(url)
    if not attrs:
        return value
    from ntkdist.ridge.estimators import saving

    return saving.restored(value, attrs, arrays, url)
