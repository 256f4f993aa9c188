"""The mount's side of commands that keep their connection: `warm`, `cache`, and `open_cached`."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from queue import Empty, Full, Queue
from typing import Any

from lightlyfs.app import Dataset
from lightlyfs.blocks import ContentId
from lightlyfs.cli.output import size_text
from lightlyfs.control import Channel, Session, failure
from lightlyfs.errors import LightlyFsError, StartError, errno_of, may_pass
from lightlyfs.fs.direct_reads import CachedFiles
from lightlyfs.fs.namespace import Part
from lightlyfs.fs.warming import Failure, Warming

log = logging.getLogger(__name__)

# how often a warming reports its progress, so that a bar moves steadily
_TELL_EVERY_S = 0.2
_DRAIN_STEP_S = 1.0
_FAILURES_AT_ONCE = 100
_TELL_CACHE_S = 5.0
# of the cache; the rest is for what is read beside the pinned files
_PINNED_SHARE = 0.75
# how often a program is answered whose order is not needed yet
_SIGN_OF_LIFE_S = 2.0


def sessions_of(parts: Dataset) -> Mapping[str, Session]:
    """The sessions that a mount holds, by the command that begins them."""
    inside = parts.part.inside

    def names_of(channel: Channel) -> Iterator[str]:
        return map(inside, _names(channel))

    def warm(message: Mapping[str, Any], channel: Channel) -> None:
        pin = bool(message.get("pin"))
        pin_bytes = _pinned_limit(parts) if pin else None
        warming = parts.warming(names_of(channel), message["jobs"], message["tag"], pin_bytes)
        try:
            _warm(parts, warming, channel, pin=pin)
        finally:
            warming.stop()

    cached_files = parts.cached_files()

    def open_cached(message: Mapping[str, Any] | None, channel: Channel) -> None:
        while message is not None:
            _hand_out(cached_files, inside(str(message["path"])), channel)
            message = channel.receive()

    def send(message: Mapping[str, Any], channel: Channel) -> None:
        names = list(names_of(channel))
        if parts.uploads is None:
            channel.send(failure("the mount is read-only"))
        else:
            refused = {parts.part.shown(path): why for path, why in parts.uploads.send(names).items()}
            channel.send({"ok": True, "refused": refused})

    def drain(_: Mapping[str, Any], channel: Channel) -> None:
        _drain(parts, channel)

    def cache(message: Mapping[str, Any], channel: Channel) -> None:
        warming = parts.warming(names_of(channel), 1, message["tag"])
        try:
            channel.send({"ok": True, **_of_cache(parts, warming, str(message["do"]), channel)})
        except sqlite3.Error as error:
            raise StartError(f"the index of the cache cannot be written: {error}") from error

    def ahead(_: Mapping[str, Any], channel: Channel) -> None:
        _fetch_ahead(parts, channel)

    by_name = {"warm": warm, "open_cached": open_cached, "send": send, "drain": drain}
    return by_name | {"ahead": ahead, "cache": cache}


def _drain(parts: Dataset, channel: Channel) -> None:
    """Tell how many uploads are under way of those that began by now, until none is."""
    list(_names(channel))  # none
    uploads = parts.uploads
    last = 0 if uploads is None else uploads.uploader.submitted()
    left = -1
    while left and not channel.has_ended():
        left, moved = (0, 0) if uploads is None else uploads.wait_idle(_DRAIN_STEP_S, last)
        channel.send({"ok": True, "under_way": left, "moved": moved})


def _of_cache(parts: Dataset, warming: Warming, do: str, channel: Channel) -> dict[str, int]:
    """Check, evict, verify, pin or unpin what is cached of some files; return the counts."""
    counts = dict.fromkeys(("files", "bytes", "cached_files", "cached_bytes", "done_files"), 0)
    contents: list[ContentId] = []
    told = time.monotonic()
    for size, content in warming.each():
        counts["files"] += 1
        counts["bytes"] += size
        if content is not None:
            counts["cached_bytes"] += size
            contents.append(content)
            if do == "verify":
                counts["done_files"] += _is_proven(parts, content)
            elif do == "evict":
                parts.cache.drop(content)
        if time.monotonic() - told > _TELL_CACHE_S:
            told = time.monotonic()
            channel.send({"ok": True, "progress": len(contents)})  # or the other end gives up
    counts["cached_files"] = len(contents)
    if do != "verify":
        counts["done_files"] = len(contents)
    _pin(parts, do, contents)
    pinned = parts.cache.pinned()
    counts["pinned_files"] = sum(content.key() in pinned for content in contents)
    return counts


def _is_proven(parts: Dataset, content: ContentId) -> bool:
    if parts.cache.proven_file(content) is not None:
        return True
    parts.cache.drop(content)
    return False


def _pin(parts: Dataset, do: str, contents: list[ContentId]) -> None:
    if do not in ("pin", "unpin"):
        return
    if do == "pin":
        _check_room(parts, sum(content.size for content in contents))
    parts.cache.set_pinned([content.key() for content in contents], pinned=do == "pin")


def _check_room(parts: Dataset, size: int) -> None:
    if size > _pinned_limit(parts):
        limit = size_text(parts.cache.room.limit)
        raise StartError(f"{size_text(size)} would fill the cache of {limit}; see --cache-size")


def _pinned_limit(parts: Dataset) -> int:
    return int(parts.cache.room.limit * _PINNED_SHARE)


def _fetch_ahead(parts: Dataset, channel: Channel) -> None:
    """Fetch what a program announces, a few paths at a time, until it hangs up or the mount ends."""
    waiting: Queue[list[str]] = Queue(maxsize=1)
    ended = threading.Event()

    def batches() -> Iterator[list[str]]:
        while not ended.is_set():
            try:
                yield [parts.part.inside(path) for path in waiting.get(timeout=_TELL_EVERY_S)]
            except Empty:
                continue

    with parts.ahead(batches()):
        try:
            while (message := channel.receive()) is not None:
                while not _put(waiting, [str(name) for name in message["names"]]):
                    channel.send({"ok": True, "taken": False})  # or the program would take us for gone
                    if channel.has_ended() or parts.closing.is_set():
                        return
                channel.send({"ok": True, "taken": True})
        finally:
            ended.set()


def _put(waiting: Queue[list[str]], names: list[str]) -> bool:
    try:
        waiting.put(names, timeout=_SIGN_OF_LIFE_S)
    except Full:
        return False
    return True


def _hand_out(cached_files: CachedFiles, path: str, channel: Channel) -> None:
    try:
        descriptor = cached_files.open(path)
    except (LightlyFsError, OSError) as error:
        number, level = errno_of(error)
        log.log(level, "open_cached %s: %s", path, error)
        channel.send(failure(str(error), errno=number, passes=may_pass(error)))
        return
    try:
        channel.send({"ok": True}, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _names(channel: Channel) -> Iterator[str]:
    """The paths that the other end sends, in messages of some each; the last one is empty."""
    while True:
        message = channel.receive()
        if message is None:
            raise ConnectionError("hung up before all was named")
        if not message["names"]:
            return
        yield from map(str, message["names"])


def _warm(parts: Dataset, warming: Warming, channel: Channel, *, pin: bool) -> None:
    plan = warming.plan()
    if pin:
        _check_room(parts, plan.bytes)
    channel.send({"ok": True, "plan": plan._asdict()})
    evicted = parts.cache.stats().evicted
    warming.start()
    while True:
        progress = warming.wait(_TELL_EVERY_S)
        _tell_failures(channel, parts.part, warming.take_failures())
        channel.send({"ok": True, "progress": progress._asdict()})
        if progress.ended:
            break
        if channel.has_ended():
            return
    if parts.closing.is_set():
        return  # not done: the client sees the mount close the connection
    # what is pinned is counted by who asked for it
    if parts.cache.stats().evicted != evicted and not pin:
        _tell_failures(channel, parts.part, warming.displaced())
    channel.send({"ok": True, "done": True})


def _tell_failures(channel: Channel, part: Part, failures: Iterable[Failure]) -> None:
    batch = []
    for one in failures:
        batch.append(one._replace(path=part.shown(one.path) or one.path))
        if len(batch) == _FAILURES_AT_ONCE:
            channel.send({"ok": True, "failed": batch})
            batch = []
    if batch:
        channel.send({"ok": True, "failed": batch})
