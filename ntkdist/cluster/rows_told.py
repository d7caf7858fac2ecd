"""Rows that are done within a task, from the worker that runs it to the client that shows them.

They are events of the scheduler, of one topic: it keeps the last of them, however many passes there are.
"""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distributed import Client, get_worker

from ntkdist.cluster.progress import RowsDone

TOPIC = "ntkdist-rows"
EVERY_SECONDS = 1.0


@dataclass
class RowsTold:
    """A function of the rows of a shard that are done, which sends them from its worker, at most once a second."""

    pass_id: str
    shard: int
    last: float = 0.0

    def __call__(self, rows: int) -> None:
        if time.monotonic() - self.last >= EVERY_SECONDS:
            self.last = time.monotonic()
            get_worker().log_event(TOPIC, [self.pass_id, self.shard, rows])


@contextmanager
def listening(client: Client, pass_id: str, rows: RowsDone) -> Iterator[None]:
    """Receive the rows of a pass during the block, and show them in a thread that may call the client itself.

    Two passes of one client at once, in two threads, are shown shard by shard: a client has one handler of a topic.
    """
    events: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()

    def handle(event: tuple[float, Any]) -> None:
        sender, shard, done = event[1]
        if sender == pass_id:
            events.put((shard, done))

    def show() -> None:
        while (event := events.get()) is not None:
            rows.within(*event)

    client.subscribe_topic(TOPIC, handle)
    thread = threading.Thread(target=show, name="ntkdist-rows", daemon=True)
    thread.start()
    try:
        yield
    finally:
        events.put(None)
        if client.status == "running":
            client.unsubscribe_topic(TOPIC)
