"""Where fsspec's base class guesses, this one asks: what is absent, and which names are patterns.

fsspec takes every error of a lookup for "not there", and every `[`, `?` or `*` for a pattern. So a server
that does not answer would look like an empty dataset, and an image called `a[1].jpg` could not be copied.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem, make_path_posix, trailing_sep
from fsspec.utils import other_paths

from lightlyfs.errors import (
    Forbidden,
    LightlyFsError,
    NameTooLong,
    NoSuchDataset,
    NotFound,
    Retryable,
    StartError,
    TlsFailed,
    Unauthorized,
    errno_of,
)


class DatasetNotFoundError(FileNotFoundError):
    """The dataset is not there: that says nothing of a path, so no call takes it for an empty answer."""


@contextmanager
def opening(path: str) -> Iterator[None]:
    """What keeps a dataset from being opened, as what a user of `open` expects.

    A token that is refused is a PermissionError, a dataset that is not there a FileNotFoundError, a server
    that cannot be reached a ConnectionError. What is missing on this machine is no answer about the path.
    """
    try:
        yield
    except LightlyFsError as error:
        cause = error.__cause__ if isinstance(error, StartError) else error
        kind: type[OSError] = OSError
        if isinstance(error, NoSuchDataset | NotFound):
            kind = DatasetNotFoundError
        elif isinstance(cause, Retryable | TlsFailed):
            kind = ConnectionError
        number, _ = errno_of(cause if isinstance(cause, Unauthorized | Forbidden) else error)
        raise kind(number, f"{os.strerror(number)} ({error})", path) from error
    except (FileNotFoundError, NotADirectoryError, sqlite3.Error) as error:
        # a cleaner deletes what is being opened on this machine
        number, _ = errno_of(StartError())
        raise OSError(number, f"{os.strerror(number)} ({error})", path) from error


class AskingFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The base class, without its guesses."""

    # absence

    def _type_of(self, path: str) -> str | None:
        """What a path is, None where nothing is; raises where that cannot be said."""
        try:
            return str(self.info(path)["type"])
        except OSError as error:
            if not _says_absent(error):
                raise
            return None

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is something at a path; OSError where that cannot be said."""
        return self._type_of(path) is not None

    def lexists(self, path: str, **kwargs: Any) -> bool:
        """As `exists`: there are no links."""
        return self.exists(path)

    def isfile(self, path: str) -> bool:
        """Whether there is a file at a path; OSError where that cannot be said."""
        return self._type_of(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether there is a directory at a path; OSError where that cannot be said."""
        return self._type_of(path) == "directory"

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: str | Callable[[OSError], object] = "omit",
        **kwargs: Any,
    ) -> Iterator[tuple[str, Any, Any]]:
        """The directories below a path with what is in each, as `os.walk`.

        One that is not there is left out, unless `on_error` is "raise"; what cannot be listed raises OSError.
        `find`, `glob` and `du` do the same.
        """
        if on_error == "omit":
            on_error = _raise_unless_absent
        yield from super().walk(path, maxdepth=maxdepth, topdown=topdown, on_error=on_error, **kwargs)

    def get_mapper(self, root: str = "", *args: Any, **kwargs: Any) -> Any:
        """A mapping of what is below `root`; OSError where its dataset cannot be opened.

        The mapping takes each later FileNotFoundError for a missing key.
        """
        self.exists(root)
        return super().get_mapper(root, *args, **kwargs)

    # names

    def expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> list[str]:
        """The paths that names, patterns and directories stand for; a name that is there is no pattern."""
        given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        found: set[str] = set()
        patterns = []
        for one in given:
            if not self._is_literal(one):
                patterns.append(one)
                continue
            name = self._strip_protocol(one)
            found.add(name)
            if recursive:
                found.update(self.find(name, maxdepth=maxdepth, withdirs=True))
        if patterns or not found:
            found.update(super().expand_path(patterns or path, recursive, maxdepth, **kwargs))
        return sorted(found)

    def _is_literal(self, path: Any) -> bool:
        """Whether what looks like a pattern is the name of something."""
        name = self._strip_protocol(path)
        return has_magic(name) and self.exists(name)

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        callback: Any = None,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy files to the local disk; a name that is there is no pattern."""
        if isinstance(rpath, str) and isinstance(lpath, str) and self._is_literal(rpath):
            lpath = make_path_posix(lpath)
            into = trailing_sep(lpath) or LocalFileSystem().isdir(lpath)
            rpath, lpath = self._pairs(rpath, lpath, into, recursive, maxdepth)
        options = kwargs if callback is None else {"callback": callback, **kwargs}
        super().get(rpath, lpath, recursive=recursive, maxdepth=maxdepth, **options)

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        on_error: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy files through this machine; a name that is there is no pattern."""
        if isinstance(path1, str) and isinstance(path2, str) and self._is_literal(path1):
            into = trailing_sep(path2) or self.isdir(path2)
            path1, path2 = self._pairs(path1, path2, into, recursive, maxdepth)
        super().copy(path1, path2, recursive=recursive, maxdepth=maxdepth, on_error=on_error, **kwargs)

    def _pairs(
        self, source: str, target: str, into: bool, recursive: bool, maxdepth: int | None
    ) -> tuple[list[str], list[str]]:
        """Which path goes where when `source`, a name, is copied to `target`, or `into` it."""
        sources = self.expand_path(source, recursive, maxdepth)
        if not recursive or maxdepth is not None:
            sources = [one for one in sources if not self.isdir(one)]
        return sources, other_paths(sources, target, exists=into and not trailing_sep(source))


def _says_absent(error: OSError) -> bool:
    """Whether an error says that nothing is there, rather than that it cannot be said."""
    if isinstance(error, DatasetNotFoundError):
        return False
    return isinstance(error, FileNotFoundError | NotADirectoryError) or isinstance(
        error.__cause__, NameTooLong
    )


def _raise_unless_absent(error: OSError) -> None:
    if not _says_absent(error):
        raise error
