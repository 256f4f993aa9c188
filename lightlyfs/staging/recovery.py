"""Restores local files from the journal and the spool of an earlier mount, at whatever step it crashed."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections import Counter
from collections.abc import Callable

from lightlyfs.staging.journal import Journal
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.spool import Spool

log = logging.getLogger(__name__)

_UNFINISHED = "the mount ended while it was written"
GONE = "its staged bytes are gone"
DAMAGED = "its staged bytes are damaged"
_NO_RECORD = "the journal was damaged, and says nothing of these bytes"


def recovered(journal: Journal, spool: Spool, counts: Callable[[str], bool]) -> list[Record]:
    """Return the records to resume, corrected in the journal; those that keep their path come first.

    `counts(path)` says whether a complete file at a path is for the server.
    """
    present = set(spool.generations())
    records = journal.records()
    changing = {record.sample_id for record in records if record.state is not State.UPLOADED}
    uploaded = Counter(record.sample_id for record in records if record.state is State.UPLOADED)
    # which of several uploads of one sample is the latest is not known; the next listing shows the sample
    changing |= {sample_id for sample_id, uploads in uploaded.items() if uploads > 1}
    found = _without_records(journal, spool, present, {record.key for record in records})
    for record in records:
        if record.state is not State.UPLOADED:
            found += _recovered(journal, spool, record, present, counts)
        elif record.sample_id in changing:
            journal.remove(record.key)  # it may not be the sample's latest image
        else:
            found.append(record)
    return sorted(found, key=_precedence)


def _precedence(record: Record) -> tuple[bool, bool, bool, str]:
    unfinished = record.state is State.INTERRUPTED or bool(record.broken)
    return record.state is not State.UPLOADED, unfinished, not record.create_sent, record.key


def _without_records(
    journal: Journal, spool: Spool, present: set[tuple[str, int]], known: set[str]
) -> list[Record]:
    """Records for staged bytes of which a damaged journal says nothing: half files, for a person to look at.

    Bytes are deleted before their record is, so no other bytes are without one.
    """
    newest = {key: generation for key, generation in sorted(present) if key not in known}
    found = []
    for key, generation in newest.items():
        staged = spool.path(key, generation).stat()
        if not staged.st_size:
            continue
        path, time_ns = f"recovered-{key[:8]}", staged.st_mtime_ns
        record = Record(
            key,
            path,
            path,
            State.INTERRUPTED,
            generation=generation,
            size=staged.st_size,
            atime_ns=time_ns,
            mtime_ns=time_ns,
            ctime_ns=time_ns,
            error=_NO_RECORD,
        )
        journal.put(record)
        log.warning("%s: %s", path, _NO_RECORD)
        found.append(record)
    return found


def _recovered(
    journal: Journal,
    spool: Spool,
    record: Record,
    present: set[tuple[str, int]],
    counts: Callable[[str], bool],
) -> list[Record]:
    unfinished = record.state is State.OPEN or bool(record.broken)
    if unfinished and (record.key, record.acknowledged) in present:
        return _split(journal, spool, record, present)
    if (record.key, record.generation) not in present:
        return _without_bytes(journal, record)
    if record.owed and not record.broken:
        return [_as_sealed(journal, spool, record)]
    staged = spool.path(record.key, record.generation).stat()
    known = record.changed(size=staged.st_size)
    if record.state is State.OPEN:
        known = known.changed(mtime_ns=staged.st_mtime_ns, ctime_ns=staged.st_mtime_ns)
        if record.replaces or counts(record.path):
            known = known.changed(state=State.INTERRUPTED, error=_UNFINISHED)
        else:
            # a file for this machine only is what was written so far, as on any disk
            known = known.changed(state=State.LOCAL, error="")
    if known != record:
        journal.put(known)
    return [known]


def _split(journal: Journal, spool: Spool, record: Record, present: set[tuple[str, int]]) -> list[Record]:
    """Return a file that was being written again while the server was still owed its earlier generation.

    That one was acknowledged, so it goes up; what was being written becomes a file of its own, or for a
    sample a half that is kept out of view.
    """
    found = []
    if (record.key, record.generation) in present:
        half = Record(
            secrets.token_hex(16),
            record.path,
            record.name,
            State.INTERRUPTED,
            generation=record.generation,
            size=spool.path(record.key, record.generation).stat().st_size,
            mode=record.mode,
            atime_ns=record.atime_ns,
            mtime_ns=record.mtime_ns,
            ctime_ns=record.ctime_ns,
            error=record.error or _UNFINISHED,
            broken=record.broken,
        )
        journal.put(half)
        spool.move(record.key, record.generation, half.key)
        found.append(half)
    size = os.stat(spool.path(record.key, record.acknowledged)).st_size
    whole = record.changed(
        generation=record.acknowledged,
        state=State.PENDING,
        size=size,
        error="",
        broken=0,
        acknowledged=-1,
        thumbnail_done=False,
    )
    journal.put(whole)
    return [_as_sealed(journal, spool, whole), *found]


def _as_sealed(journal: Journal, spool: Spool, record: Record) -> Record:
    """Check an owed record; bytes that differ from the promised ones are never uploaded."""
    if spool.is_whole(record.key, record.generation, record.size, record.checksum):
        return record
    kept = spool.put_aside(record.key, record.generation)
    log.error("%s: %s; what is left of them is %s", record.path, DAMAGED, kept)
    lost = record.changed(state=State.FAILED, broken=errno.ENODATA, error=DAMAGED)
    journal.put(lost)
    return lost


def _without_bytes(journal: Journal, record: Record) -> list[Record]:
    """Return a record whose bytes are not there.

    They are deleted only after an upload or a removal, which a crash of the machine may have made the
    journal forget: then the server has what there is. Bytes that were promised to no program are no loss.
    """
    if record.broken == errno.ENODATA:
        return [record]  # known to be lost, and a person has not said yet that it may be forgotten
    if record.sample_id or record.create_sent or record.state in (State.OPEN, State.INTERRUPTED):
        log.warning("%s was %s, and its staged bytes are gone; forgotten", record.path, record.state.value)
        journal.remove(record.key)
        return []
    lost = record.changed(state=State.FAILED, broken=errno.ENODATA, error=GONE)
    journal.put(lost)
    return [lost]
