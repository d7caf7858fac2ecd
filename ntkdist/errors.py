"""What can go wrong, as types. Every message says what happened, what was got and expected, and what to do."""


class NtkdistError(Exception):
    """Base of every error that ntkdist raises on purpose; the command line prints it as one line."""


class SpecError(NtkdistError, ValueError):
    """A spec (feature map, dataset, job, ...) has a field that cannot be."""


class DataError(NtkdistError):
    """Data is missing, damaged, or not what the model or the job expects."""


class Damaged(DataError):
    """A chunk is missing or is not what was written, however often it is read."""


class InputError(DataError, ValueError):
    """Arrays given to an estimator are not what it expects; a ValueError, as scikit-learn has it."""


class PlanTooLarge(NtkdistError, MemoryError):
    """The plan was not run because its projected memory is above the limit."""


class NotPositiveDefinite(NtkdistError, ArithmeticError):
    """The Gram matrix plus ``alpha`` could not be factored."""


class NotConverged(NtkdistError, ArithmeticError):
    """Conjugate gradients did not reach the residual asked for."""


class ClusterError(NtkdistError):
    """The cluster cannot be reached, has no workers, or lost a task for good."""


class StoreError(NtkdistError):
    """A saved value cannot be written where asked, or cannot be trusted when read."""
