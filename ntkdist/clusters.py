"""Where a job can run, as values: the ``[cluster]`` table of a job, of which `cluster` makes a client."""

from typing import Annotated

from msgspec import Meta

from ntkdist.spec import Spec

Positive = Annotated[int, Meta(ge=1)]


class Local(Spec, frozen=True, tag="local"):
    """A cluster of worker processes on this machine, which ends with the run.

    Parameters
    ----------
    workers : int
    """

    workers: Positive = 1


class Address(Spec, frozen=True, tag="address"):
    """A cluster that runs already.

    Parameters
    ----------
    address : str
        Of its scheduler, such as ``tcp://host:8786``.
    """

    address: str


AnyCluster = Local | Address
