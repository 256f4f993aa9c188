"""The error tree of lightlyfs, and the errno of each error.

    LightlyFsError
    +-- SettingsError            an argument, option or environment variable is wrong
    +-- StartError               the mount cannot start on this machine
    |   +-- NoSuchDataset        no dataset of this name or id can be seen with the token
    +-- RequestError             a request to the API or to storage failed
    |   +-- BadRequest           400: the server does not understand the request
    |   +-- Unauthorized         401: no token, or one the server does not know
    |   +-- Forbidden            403: the token may not do this
    |   +-- NotFound             404: no such dataset, sample or object
    |   +-- Conflict             409, 412: it exists already, or it changed
    |   +-- TooLarge             413: the body or the answer is over the server's limit
    |   +-- QuotaExceeded        402, 507 and the quota codes: the account is full
    |   +-- Refused              any other 4xx
    |   +-- MalformedAnswer      a 2xx answer that is not what the API promises
    |   |   +-- OddAnswer          an answer that speaks against what is known
    |   +-- UnsafeUrl            an address that is not http or https
    |   +-- PrivateAddress       storage at an address that is not public
    |   +-- TlsFailed            the certificate or the handshake was refused
    |   +-- Cancelled            the caller gave up
    |   +-- Retryable            the same request may succeed later
    |       +-- Throttled        429: too many requests
    |       +-- ServerFault      408, 5xx: the server failed
    |       +-- TimedOut         no answer, or no byte, within the limit
    |       +-- Unreachable      no connection, or it broke
    |       +-- ShortBody        the body ended before its announced length
    +-- ContentError             the bytes of a sample cannot be had
    |   +-- NoContent            the sample has no stored object
    |   +-- ContentChanged       the object changed while it was being read
    |   +-- SizeUnknown          the size can be neither found nor fetched now
    |   +-- UnreadableSample     an image for a training cannot be read or decoded
    +-- FileError                what was asked makes no sense for this path
        +-- NoSuchFile           no such path
        +-- StaleName            the kernel knows a name that is gone
        +-- NotADirectory        a file stands where a directory is needed
        +-- IsADirectory         a directory stands where a file is needed
        +-- FileExists           the path exists
        +-- NotPermitted         lightlyfs or the API does not allow it
        +-- ReadOnly             the mount is read-only
        +-- BadHandle            the file handle is not open
        +-- OpenNotNeeded        files are read by path: their opens need not be told
        +-- NoAttribute          no such extended attribute
        +-- UnknownNamespace     extended attributes of this namespace are not kept
        +-- InvalidArgument      the arguments make no sense together
        +-- DirectoryNotEmpty    the directory has something in it
        +-- DirectoryTooLarge    the directory has too many samples to be renamed
        +-- AttributeTooLarge    the value of an extended attribute is too large
        +-- BadName              no sample can have this name
        +-- NameTooLong          a part of the path has over 255 bytes
        +-- TooManyWaiting       too many calls wait for uploads already
        +-- Interrupted          the caller was interrupted by a signal
        +-- DeadlineExceeded     the answer did not come within the limit of one call

An error carries what a person needs; the errno of each is in the table below, and nowhere else.
"""

from __future__ import annotations

import errno
import logging


class LightlyFsError(Exception):
    """Base of every error lightlyfs raises on purpose."""


class SettingsError(LightlyFsError):
    """An argument, option or environment variable is wrong; the text names it and the way out."""


class StartError(LightlyFsError):
    """The mount cannot start on this machine; the text names the reason and the way out."""


class NoSuchDataset(StartError):
    """No dataset of this name or id can be seen with the token."""


class RequestError(LightlyFsError):
    """A request to the API or to storage failed.

    `status` is the HTTP status or None, `code` the API's error code (`SAMPLE_UNKNOWN`) or "",
    `request_id` what the server calls the request or "", `retry_after_s` what the server asked for.
    `request_sent` is False only where surely no byte of the request left this machine, so that even a
    create may be tried again. `settled` is set once the request was repeated as often as it may be, so that
    an outer loop does not repeat it as well.
    The text never holds a token or a signed query.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        code: str = "",
        request_id: str = "",
        retry_after_s: float | None = None,
        request_sent: bool = True,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.request_sent = request_sent
        self.settled = False


class BadRequest(RequestError):
    """The server does not understand the request (400)."""


class Unauthorized(RequestError):
    """No token, or one the server does not know (401)."""


class Forbidden(RequestError):
    """The token may not do this (403)."""


class NotFound(RequestError):
    """There is no such dataset, sample or object (404)."""


class Conflict(RequestError):
    """It exists already, or it changed meanwhile (409, 412)."""


class TooLarge(RequestError):
    """The body or the answer is over the server's limit (413)."""


class QuotaExceeded(RequestError):
    """The account or the dataset is full (402, 507, or an API code that says so)."""


class Refused(RequestError):
    """The server refused the request for another reason (any other 4xx)."""


class MalformedAnswer(RequestError):
    """A successful answer that is not what the API promises; the text names the bad field."""


class OddAnswer(MalformedAnswer):
    """An answer that contradicts what is known; it counts only once it was confirmed by further requests.

    `differs` is true if the previous answer said something else: the time of doubt starts over then.
    """

    differs = False


class UnsafeUrl(RequestError):
    """An address that is not http or https, and is therefore not followed."""


class PrivateAddress(RequestError):
    """Storage at an address of this machine or of a private network, which is not followed."""


class TlsFailed(RequestError):
    """The server's certificate or the TLS handshake was refused."""


class Cancelled(RequestError):
    """The caller gave up on the request."""


class Retryable(RequestError):
    """A failure after which the same request may succeed."""


class Throttled(Retryable):
    """Too many requests (429)."""


class ServerFault(Retryable):
    """The server failed (408 and 5xx)."""


class TimedOut(Retryable):
    """No answer, or no further byte, came within the limit."""


class Unreachable(Retryable):
    """No connection could be made, or it broke."""


class ShortBody(Retryable):
    """The body ended before its announced length."""


class ContentError(LightlyFsError):
    """The bytes of a sample cannot be had; `settled` as for a `RequestError`."""

    settled = False


class NoContent(ContentError):
    """The sample has no stored object."""


class ContentChanged(ContentError):
    """The stored object changed while it was being read."""


class SizeUnknown(ContentError):
    """The size of a sample can be neither found in the metadata nor fetched now."""


class UnreadableSample(ContentError):
    """An image for a training cannot be read or decoded; the text names its path and sample."""

    def __init__(self, message: str, path: str = "", sample_id: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.sample_id = sample_id


class FileError(LightlyFsError):
    """What was asked makes no sense for this path."""


class NoSuchFile(FileError):
    """No such path."""


class StaleName(FileError):
    """The kernel knows a name that is not there any more."""


class NotADirectory(FileError):
    """A file stands where a directory is needed."""


class IsADirectory(FileError):
    """A directory stands where a file is needed."""


class FileExists(FileError):
    """The path exists."""


class NotPermitted(FileError):
    """lightlyfs or the API does not allow it."""


class ReadOnly(FileError):
    """The mount is read-only."""


class BadHandle(FileError):
    """The file handle is not open."""


class OpenNotNeeded(FileError):
    """Files are read by their path from now on, and need not be opened."""


class NoAttribute(FileError):
    """The file has no such extended attribute."""


class UnknownNamespace(FileError):
    """Extended attributes of this namespace are not kept."""


class InvalidArgument(FileError):
    """The arguments make no sense together."""


class DirectoryNotEmpty(FileError):
    """The directory has something in it."""


class DirectoryTooLarge(FileError):
    """The directory has too many samples to be renamed one by one."""


class AttributeTooLarge(FileError):
    """The value of an extended attribute is too large."""


class BadName(FileError):
    """No sample can have this name, because its path would be another one."""


class NameTooLong(FileError):
    """A part of the path has over 255 bytes."""


class TooManyWaiting(FileError):
    """Too many calls wait for uploads already; the file stays pending."""


class Interrupted(FileError):
    """The calling process was interrupted by a signal."""


class DeadlineExceeded(FileError):
    """The answer did not come within the limit of one call."""


# what each error is to the kernel

# a class stands for its subclasses too, unless they have a row of their own
TABLE: dict[type[BaseException], tuple[int, int]] = {
    SettingsError: (errno.EINVAL, logging.ERROR),
    StartError: (errno.EIO, logging.ERROR),
    NoSuchDataset: (errno.ENOENT, logging.ERROR),
    BadRequest: (errno.EINVAL, logging.WARNING),
    Unauthorized: (errno.EACCES, logging.WARNING),
    Forbidden: (errno.EACCES, logging.WARNING),
    NotFound: (errno.ENOENT, logging.WARNING),
    Conflict: (errno.EEXIST, logging.WARNING),
    TooLarge: (errno.EFBIG, logging.WARNING),
    QuotaExceeded: (errno.ENOSPC, logging.WARNING),
    Refused: (errno.EIO, logging.WARNING),
    MalformedAnswer: (errno.EIO, logging.ERROR),
    OddAnswer: (errno.EIO, logging.WARNING),
    UnsafeUrl: (errno.EIO, logging.ERROR),
    PrivateAddress: (errno.EACCES, logging.WARNING),
    TlsFailed: (errno.EIO, logging.ERROR),
    Cancelled: (errno.EINTR, logging.INFO),
    # EAGAIN would make blocking readers spin or fail oddly
    Throttled: (errno.EIO, logging.WARNING),
    ServerFault: (errno.EIO, logging.WARNING),
    TimedOut: (errno.ETIMEDOUT, logging.WARNING),
    Unreachable: (errno.EIO, logging.WARNING),
    ShortBody: (errno.EIO, logging.WARNING),
    NoContent: (errno.ENODATA, logging.INFO),
    ContentChanged: (errno.ESTALE, logging.WARNING),
    SizeUnknown: (errno.EIO, logging.WARNING),
    UnreadableSample: (errno.EIO, logging.WARNING),
    NoSuchFile: (errno.ENOENT, logging.DEBUG),
    # Linux looks the name up again (path_openat), and creates the file if the program said so
    StaleName: (errno.ESTALE, logging.DEBUG),
    NotADirectory: (errno.ENOTDIR, logging.DEBUG),
    IsADirectory: (errno.EISDIR, logging.DEBUG),
    FileExists: (errno.EEXIST, logging.DEBUG),
    NotPermitted: (errno.EPERM, logging.INFO),
    ReadOnly: (errno.EROFS, logging.DEBUG),
    BadHandle: (errno.EBADF, logging.WARNING),
    # the kernel's own way to be told so (FUSE_OPEN); no program sees it
    OpenNotNeeded: (errno.ENOSYS, logging.DEBUG),
    NoAttribute: (errno.ENODATA, logging.DEBUG),
    UnknownNamespace: (errno.ENOTSUP, logging.DEBUG),
    InvalidArgument: (errno.EINVAL, logging.DEBUG),
    DirectoryNotEmpty: (errno.ENOTEMPTY, logging.DEBUG),
    DirectoryTooLarge: (errno.EPERM, logging.INFO),
    AttributeTooLarge: (errno.E2BIG, logging.INFO),
    BadName: (errno.EINVAL, logging.INFO),
    NameTooLong: (errno.ENAMETOOLONG, logging.DEBUG),
    TooManyWaiting: (errno.EIO, logging.WARNING),
    Interrupted: (errno.EINTR, logging.DEBUG),
    DeadlineExceeded: (errno.ETIMEDOUT, logging.WARNING),
    # an EILSEQ in the making: a name from the kernel that is not UTF-8
    UnicodeError: (errno.EILSEQ, logging.DEBUG),
    MemoryError: (errno.ENOMEM, logging.ERROR),
}


# a mount cannot reach the server, is away, has another version of a file
_PASSING_OF_MOUNTS = (errno.EIO, errno.ENOTCONN, errno.ESTALE)


def errno_of(error: BaseException) -> tuple[int, int]:
    """Return the errno and log level of an error; an unforeseen one is EIO, and an error in the log."""
    for kind in type(error).__mro__:
        row = TABLE.get(kind)
        if row is not None:
            return row
    if isinstance(error, OSError) and error.errno:
        return error.errno, logging.ERROR
    return errno.EIO, logging.ERROR


def may_pass(error: BaseException) -> bool:
    """Return whether what failed may work some minutes later: an outage, a token that is being renewed.

    Of an OSError: as a mount or a socket gives it to a program.
    """
    kinds = Retryable | TlsFailed | Unauthorized | ContentChanged | DeadlineExceeded
    if isinstance(error, kinds | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_OF_MOUNTS


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 file", "2 files", "3,000 directories"; the plural where it does not only add an s."""
    if number == 1:
        return f"1 {noun}"
    made = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {plural or made}"
