"""Turns a sample's name into a path: escaping, cutting and clashes. Pure: no I/O, clock or lock.

A sample name is any string; a path component is 1 to 255 bytes of UTF-8 without `/` and NUL that is
neither `.` nor `..`. The rules, in order:

1. The name is split at `/`. An empty part gives its slash, as `%2F`, to the next part (`a//b` is
   `a/%2Fb`); at the end of the name to the last one (`a/` is `a%2F`). The empty name is `%FE`.
2. NUL is `%00`, a lone surrogate its three bytes (`%ED%A0%80`), `.` and `..` are `%2E` and `%2E%2E`,
   a first part `.lightlyfs` is `%2Elightlyfs`. A literal `%XX` is `%25XX` only where rule 1 or 2 could
   have produced it. So escaping is one to one, and `unescape` undoes it.
3. A part over 255 bytes is cut and gets `~` and 8 hex digits of its digest, its extension kept.
4. The directories of a path are at most 256, and at most 3,000 bytes with their slashes, so that the whole
   can be opened by its path. The rest of the name is one component, with `%2F` for its slashes.
5. Of the samples that want one path the lowest id keeps it. The others, and every sample whose path is
   a directory, get `~` and the last 8 digits of their id before the extension.

The outcome depends on the set of samples alone, so every mount on every machine shows the same names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable
from functools import lru_cache

MAX_COMPONENT_BYTES = 255  # NAME_MAX of Linux and of every file system one would copy to
MAX_DIRECTORIES = 256  # what walks a tree by recursion still comes to its end
MAX_DIRECTORY_BYTES = 3_000  # of the 4,095 of a path; the rest is for the file and the mountpoint
RESERVED_FIRST_COMPONENT = ".lightlyfs"

_MAX_CACHED_CHARS = 512  # at most 256 plain parts, and 2,048 bytes
_EMPTY_NAME = "%FE"  # 0xFE occurs in no UTF-8 text, so no other rule produces it
_PRODUCIBLE = r"(?:00|2F|2E|25|FE|ED%[AB][0-9A-F]%[89AB][0-9A-F])"
_LITERAL_ESCAPE = re.compile(f"%(?={_PRODUCIBLE})")
_ESCAPE = re.compile(f"%{_PRODUCIBLE}")
_NEEDS_WORK = re.compile("[%\0\ud800-\udfff]")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# a part that stays as it is wherever it stands but in front: 63 characters are at most 252 bytes
_PLAIN = re.compile("(?![.]{1,2}(?:/|$))[^%/\0\ud800-\udfff]{1,63}", re.DOTALL)
_PLAIN_PATH = re.compile(f"(?:{_PLAIN.pattern}/)*{_PLAIN.pattern}", re.DOTALL)


def split_name(file_name: str) -> tuple[str, ...]:
    """Return the path components, at least one, of a sample name.

    Every component is legal on Linux; clashes between samples are not resolved here.
    """
    return _folded(_escaped_parts(file_name))


def split_path(file_name: str) -> tuple[str, str]:
    """Return the directory ("" is the root) and the last component of a sample name's path.

    The same as joining `split_name`, but several times as fast for names that need no escaping.
    """
    directory, slash, name = file_name.rpartition("/")
    # longer directories are rare, and the cache of the answers should stay small
    plain = (
        len(directory) < _MAX_CACHED_CHARS and _is_plain_directory(directory) if slash else name[:1] != "."
    )
    if plain and _PLAIN.fullmatch(name):
        return directory, name
    *directories, name = split_name(file_name)
    return "/".join(directories), name


@lru_cache(maxsize=1024)
def _is_plain_directory(directory: str) -> bool:
    first = directory.partition("/")[0]
    return first != RESERVED_FIRST_COMPONENT and _PLAIN_PATH.fullmatch(directory) is not None


def is_component(name: str, *, first: bool) -> bool:
    """Return whether a path may have this component, which as the first is not the unlisted folder."""
    if name in ("", ".", "..") or (first and name == RESERVED_FIRST_COMPONENT):
        return False
    return "/" not in name and "\0" not in name and len(name.encode()) <= MAX_COMPONENT_BYTES


def is_plain_component(name: str) -> bool:
    """Return whether a name is its own component wherever it stands; no for some that are."""
    return name[:1] != "." and _PLAIN.fullmatch(name) is not None


def is_text(name: str) -> bool:
    """Return whether a name can be given to a new sample: others are no text for many a server."""
    return _NO_TEXT.search(name) is None


def join_name(components: Iterable[str]) -> str | None:
    """Return the sample name that `split_name` turns into these components, or None.

    None means that no sample can have this path: a component was cut, or an escape in it stands where
    `split_name` would not put one.
    """
    parts = tuple(components)
    name = "/".join(_unescape(part) for part in parts)
    return name if split_name(name) == parts else None


def resolve_clashes(
    wanted: str, sample_ids: Iterable[str], taken: Container[str], *, is_directory: bool
) -> dict[str, str]:
    """Give each of several samples that want one component in one directory its own.

    `taken` holds the directory's components, `wanted` among them; none of them is given out a second
    time. Returns id to component. With `is_directory` no sample may keep `wanted`, for a directory of
    that name stands there.
    """
    names: dict[str, str] = {}
    given: set[str] = set()
    for sample_id in sorted(sample_ids):
        keeps = not is_directory and not names
        names[sample_id] = wanted if keeps else _first_free(wanted, sample_id, taken, given)
        given.add(names[sample_id])
    return names


def _escaped_parts(file_name: str) -> list[str]:
    if not file_name:
        return [_EMPTY_NAME]
    parts: list[str] = []
    slashes = 0
    for raw in file_name.split("/"):
        if not raw:
            slashes += 1
            continue
        # a lone empty part at the front is the slash before it; further in, the split ate one already
        parts.append("%2F" * slashes + _escape(raw, first=not parts and not slashes))
        slashes = 0
    if not parts:
        return ["%2F" * (slashes - 1)]
    parts[-1] += "%2F" * slashes
    return parts


def _folded(parts: list[str]) -> tuple[str, ...]:
    """Return the components of escaped parts; what is past the limit of directories becomes one of them."""
    found: list[str] = []
    room = MAX_DIRECTORY_BYTES
    for depth, part in enumerate(parts[:-1]):
        component = _cut(part)
        room -= len(component.encode()) + 1
        if room < 0 or depth == MAX_DIRECTORIES:
            # a slash that was no part's own is escaped nowhere else, so that this too is undone by `unescape`
            return (*found, _cut("%2F".join(parts[depth:])))
        found.append(component)
    return (*found, _cut(parts[-1]))


def _escape(part: str, *, first: bool) -> str:
    if part in (".", ".."):
        return part.replace(".", "%2E")
    if first and part == RESERVED_FIRST_COMPONENT:
        return "%2E" + part[1:]
    if not _NEEDS_WORK.search(part):
        return part
    part = _LITERAL_ESCAPE.sub("%25", part).replace("\0", "%00")
    return _SURROGATE.sub(_escape_surrogate, part)


def _escape_surrogate(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def _unescape(component: str) -> str:
    if component == _EMPTY_NAME:
        return ""
    return _ESCAPE.sub(_unescape_one, component)


def _unescape_one(match: re.Match[str]) -> str:
    octets = bytes.fromhex(match[0].replace("%", ""))
    return octets.decode("utf-8", "surrogatepass") if octets != b"\xfe" else match[0]


def _cut(component: str, suffix: str = "") -> str:
    """Insert `suffix` before the extension, cutting the stem where the whole would be too long."""
    raw = component.encode()
    if len(raw) + len(suffix) <= MAX_COMPONENT_BYTES:
        return _with_suffix(component, suffix)
    digest = "~" + hashlib.sha256(raw).hexdigest()[:8] + suffix
    stem, extension = _split_extension(component)
    room = MAX_COMPONENT_BYTES - len(digest) - len(extension.encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + digest + extension


def _with_suffix(component: str, suffix: str) -> str:
    if not suffix:
        return component
    stem, extension = _split_extension(component)
    return stem + suffix + extension


def _split_extension(component: str) -> tuple[str, str]:
    stem, dot, extension = component.rpartition(".")
    # an over-long "extension" is a name with a dot in it, and keeping it would leave no stem
    if not dot or not stem or len(extension.encode()) > 32:
        return component, ""
    return stem, dot + extension


def _first_free(wanted: str, sample_id: str, taken: Container[str], given: Container[str]) -> str:
    name = _cut(wanted, "~" + sample_id[-8:])
    suffix = "~" + sample_id
    while name in taken or name in given:
        # reached only by names made to look like ours; each round makes another name, so it ends
        name = _cut(wanted, suffix)
        suffix += "~"
    return name
