"""Averages of the estimators that a choice of features nearly made, by scikit-learn."""

from typing import Any

from sklearn.base import clone, is_classifier

from ntkdist.errors import InputError


def ensemble(estimator: Any) -> Any:
    """Return an average, not yet fitted, of estimators like one that has chosen its features, by the best trials."""
    from sklearn.ensemble import VotingClassifier, VotingRegressor  # with all its trees, which take long to import

    if not hasattr(estimator, "choice_"):
        raise InputError("there is no choice of features to average; fit without features first")
    pairs = estimator.choice_.near()
    weights = [weight for weight, _ in pairs]
    members = [
        (f"recipe{i}", clone(estimator).set_params(features=of.features, front=of.preprocess.front, metric=of.metric))
        for i, (_, of) in enumerate(pairs, 1)
    ]
    if is_classifier(estimator):
        return VotingClassifier(members, voting="soft", weights=weights)
    return VotingRegressor(members, weights=weights)
