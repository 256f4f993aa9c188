"""What commands and programs ask of a mount that runs, over its socket.

Knows control and places; what a command prints, or a program gets, is theirs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from lightlyfs.control import dial
from lightlyfs.errors import StartError
from lightlyfs.places import socket_of

# looking up a million files takes the mount a minute before it says a word
_ANSWER_WAIT_S = 600.0
_NAMES_AT_ONCE = 100


def session(
    mountpoint: Path, begin: Mapping[str, Any], names: Iterable[str], *, timeout_s: float = _ANSWER_WAIT_S
) -> Generator[dict[str, Any], None, None]:
    """Begin something with `begin` and the names it is for; each message that the mount answers.

    The caller stops at the last one it waits for. Raises StartError where the mount refuses or ends.
    """
    channel = dial(socket_of(mountpoint), timeout_s=timeout_s)
    if channel is None:
        raise StartError(f"the mount on {mountpoint} does not answer")
    try:
        with suppress(BrokenPipeError):  # it has refused already, and says why
            channel.send(begin)
            for batch in _batches(names):
                channel.send({"names": batch})
        while True:
            message = channel.receive()
            if message is None:
                raise StartError(f"the mount on {mountpoint} ended before all was done; run it again")
            if not message["ok"]:
                raise StartError(str(message["error"]))
            yield message
    except OSError as error:
        raise StartError(f"the mount on {mountpoint} hung up: {error}") from None
    finally:
        channel.close()


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    """The names in messages of some each, and an empty one at the end."""
    left = iter(names)
    while batch := list(islice(left, _NAMES_AT_ONCE)):
        yield batch
    yield []
