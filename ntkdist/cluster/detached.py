"""Tasks that go on without the client that submitted them."""

from collections.abc import Callable
from typing import Any

from distributed import Client, Scheduler, SchedulerPlugin, fire_and_forget, worker_client

client_of_task = worker_client  # for a task that submits others


def leave_running(client: Client, function: Callable[..., Any], *args: Any, key: str, last: bool) -> None:
    """Submit a task that nobody waits for; if it is the ``last``, the scheduler and its workers end with it."""
    if last:
        client.register_plugin(_EndsWith(key), name=key)
    fire_and_forget(client.submit(function, *args, key=key))


class _EndsWith(SchedulerPlugin):
    """A plugin that ends a scheduler, and so its workers, when a task is over, whatever its outcome.

    A gateway gives up a cluster whose scheduler has ended; ending it in another way would take a user's rights.
    """

    def __init__(self, key: str) -> None:
        self.key = key

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if key == self.key and finish in ("memory", "erred"):
            self.scheduler.loop.add_callback(self.scheduler.close, reason=f"{key} is over")
