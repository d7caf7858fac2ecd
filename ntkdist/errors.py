"""The error types.  Every message says what happened, what was got and expected, and what to do."""


class NtkdistError(Exception):
    """Base of all errors that ntkdist raises on purpose; the command line prints them as one line."""


class SpecError(NtkdistError, ValueError):
    """A spec (feature map, dataset, job, ...) has an invalid field."""


class DataError(NtkdistError):
    """Data is missing, damaged, or not as the model or the job expects."""


class Damaged(DataError):
    """A chunk is missing or differs from what was written, also when it is read again."""


class InputError(DataError, ValueError):
    """Arrays given to an estimator are not as it expects; a ValueError, as in scikit-learn."""


class PlanTooLarge(NtkdistError, MemoryError):
    """A plan's projected memory is above the limit, so that it was not run."""


class NotPositiveDefinite(NtkdistError, ArithmeticError):
    """A Gram matrix plus ``alpha`` could not be factored."""


class NotConverged(NtkdistError, ArithmeticError):
    """Conjugate gradients did not reach the requested residual."""


class ClusterError(NtkdistError):
    """A cluster cannot be reached, has no workers, or lost a task for good."""


class StoreError(NtkdistError):
    """A saved value cannot be written to its place, or cannot be trusted when read."""
