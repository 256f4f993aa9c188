"""The thread that writes down what storage reported ends with the catalogue, whenever that is closed."""

from __future__ import annotations

import threading
from pathlib import Path

from catalogkit import FakeRemote, World


class TimesOutAsItIsSet(threading.Event):
    """An event that is set, by a close, in the moment in which a wait for it has timed out."""

    def __init__(self, due: threading.Event) -> None:
        super().__init__()
        self._due = due

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        self._due.set()
        return False


def test_a_close_in_the_moment_of_a_wake_up_is_not_missed(tmp_path: Path) -> None:
    world = World(tmp_path, FakeRemote())
    catalog = world.catalog
    catalog._closing = TimesOutAsItIsSet(catalog._due)
    catalog.start()
    catalog.wake()

    catalog._flusher.join(10)

    assert not catalog._flusher.is_alive()
    catalog.close()
