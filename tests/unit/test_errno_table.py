"""Every error becomes an errno on purpose."""

from __future__ import annotations

import errno
import logging

import pytest

from lightlyfs import errors
from lightlyfs.errors import TABLE, errno_of


def leaves(kind: type[BaseException]) -> list[type[BaseException]]:
    """The classes of `errors` below a class that nothing there is derived from."""
    below = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [leaf for child in below for leaf in leaves(child)] if below else [kind]


@pytest.mark.parametrize("kind", leaves(errors.LightlyFsError), ids=lambda kind: kind.__name__)
def test_every_leaf_class_has_a_row(kind: type[BaseException]) -> None:
    assert kind in TABLE


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (errors.BadRequest("x"), errno.EINVAL),
        (errors.Unauthorized("x"), errno.EACCES),
        (errors.Forbidden("x"), errno.EACCES),
        (errors.NotFound("x"), errno.ENOENT),
        (errors.Conflict("x"), errno.EEXIST),
        (errors.TooLarge("x"), errno.EFBIG),
        (errors.QuotaExceeded("x"), errno.ENOSPC),
        (errors.Throttled("x"), errno.EIO),
        (errors.ServerFault("x"), errno.EIO),
        (errors.TimedOut("x"), errno.ETIMEDOUT),
        (errors.Unreachable("x"), errno.EIO),
        (errors.ContentChanged("x"), errno.ESTALE),
        (errors.NoContent("x"), errno.ENODATA),
        (errors.ReadOnly("x"), errno.EROFS),
        (errors.NotPermitted("x"), errno.EPERM),
        (errors.Interrupted("x"), errno.EINTR),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x"), errno.EILSEQ),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (ZeroDivisionError(), errno.EIO),
        (OSError("no number"), errno.EIO),
    ],
)
def test_an_error_becomes_this_errno(error: BaseException, number: int) -> None:
    assert errno_of(error)[0] == number


def test_an_unforeseen_error_is_logged_as_one() -> None:
    assert errno_of(KeyError("x")) == (errno.EIO, logging.ERROR)
