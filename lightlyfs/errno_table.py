"""Which errno, and which log level, each error becomes. The one place where errno is chosen."""

from __future__ import annotations

import errno
import logging

from lightlyfs import errors

# a class stands for its subclasses too, unless they have a row of their own
_TABLE: dict[type[BaseException], tuple[int, int]] = {
    errors.SettingsError: (errno.EINVAL, logging.ERROR),
    errors.StartError: (errno.EIO, logging.ERROR),
    errors.NoSuchDataset: (errno.ENOENT, logging.ERROR),
    errors.BadRequest: (errno.EINVAL, logging.WARNING),
    errors.Unauthorized: (errno.EACCES, logging.WARNING),
    errors.Forbidden: (errno.EACCES, logging.WARNING),
    errors.NotFound: (errno.ENOENT, logging.WARNING),
    errors.Conflict: (errno.EEXIST, logging.WARNING),
    errors.TooLarge: (errno.EFBIG, logging.WARNING),
    errors.QuotaExceeded: (errno.ENOSPC, logging.WARNING),
    errors.Refused: (errno.EIO, logging.WARNING),
    errors.MalformedAnswer: (errno.EIO, logging.ERROR),
    errors.OddAnswer: (errno.EIO, logging.WARNING),
    errors.UnsafeUrl: (errno.EIO, logging.ERROR),
    errors.PrivateAddress: (errno.EACCES, logging.WARNING),
    errors.TlsFailed: (errno.EIO, logging.ERROR),
    errors.Cancelled: (errno.EINTR, logging.INFO),
    # EAGAIN would make blocking readers spin or fail oddly
    errors.Throttled: (errno.EIO, logging.WARNING),
    errors.ServerFault: (errno.EIO, logging.WARNING),
    errors.TimedOut: (errno.ETIMEDOUT, logging.WARNING),
    errors.Unreachable: (errno.EIO, logging.WARNING),
    errors.ShortBody: (errno.EIO, logging.WARNING),
    errors.NoContent: (errno.ENODATA, logging.INFO),
    errors.ContentChanged: (errno.ESTALE, logging.WARNING),
    errors.SizeUnknown: (errno.EIO, logging.WARNING),
    errors.NoSuchFile: (errno.ENOENT, logging.DEBUG),
    errors.NotADirectory: (errno.ENOTDIR, logging.DEBUG),
    errors.IsADirectory: (errno.EISDIR, logging.DEBUG),
    errors.FileExists: (errno.EEXIST, logging.DEBUG),
    errors.NotPermitted: (errno.EPERM, logging.INFO),
    errors.ReadOnly: (errno.EROFS, logging.DEBUG),
    errors.BadHandle: (errno.EBADF, logging.WARNING),
    # the kernel's own way to be told so (FUSE_OPEN); no program sees it
    errors.OpenNotNeeded: (errno.ENOSYS, logging.DEBUG),
    errors.NoAttribute: (errno.ENODATA, logging.DEBUG),
    errors.UnknownNamespace: (errno.ENOTSUP, logging.DEBUG),
    errors.InvalidArgument: (errno.EINVAL, logging.DEBUG),
    errors.DirectoryNotEmpty: (errno.ENOTEMPTY, logging.DEBUG),
    errors.DirectoryTooLarge: (errno.EPERM, logging.INFO),
    errors.AttributeTooLarge: (errno.E2BIG, logging.INFO),
    errors.BadName: (errno.EINVAL, logging.INFO),
    errors.NameTooLong: (errno.ENAMETOOLONG, logging.DEBUG),
    errors.TooManyWaiting: (errno.EIO, logging.WARNING),
    errors.Interrupted: (errno.EINTR, logging.DEBUG),
    errors.DeadlineExceeded: (errno.ETIMEDOUT, logging.WARNING),
    # an EILSEQ in the making: a name from the kernel that is not UTF-8
    UnicodeError: (errno.EILSEQ, logging.DEBUG),
    MemoryError: (errno.ENOMEM, logging.ERROR),
}


def errno_of(error: BaseException) -> tuple[int, int]:
    """The errno and log level of an error; an unforeseen one is EIO, and an error in the log."""
    for kind in type(error).__mro__:
        row = _TABLE.get(kind)
        if row is not None:
            return row
    if isinstance(error, OSError) and error.errno:
        return error.errno, logging.ERROR
    return errno.EIO, logging.ERROR


def has_row(kind: type[BaseException]) -> bool:
    """Whether a class has a row of its own."""
    return kind in _TABLE
