"""Where the objects of a served dataset are: the contract of a storage, a folder, and an S3 bucket.

A sample may have any name; its object has that name as its key only where it is a plain relative path. All
other objects have keys below `.lightly/objects`, made of the sample id, so no name is ever joined to a path
unchecked, and `ConfinedFolder` confines every path to its folder. `S3Storage` signs URLs of the bucket and
never carries the bytes itself.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .asgi import LocalServerError
from .request_checks import UrlSigner

RESERVED = ".lightly"
PART_MAX_BYTES = 255
KEY_MAX_BYTES = 1000
"""S3 keys end at 1024 bytes, and a prefix needs room."""


def plain_key(file_name: str) -> str | None:
    """Return `file_name` if it is safe to use as a relative path, else None."""
    try:
        raw = file_name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    parts = raw.split(b"/")
    if len(raw) > KEY_MAX_BYTES or parts[0] == RESERVED.encode() or any(byte < 32 for byte in raw):
        return None
    if any(part in (b"", b".", b"..") or len(part) > PART_MAX_BYTES for part in parts):
        return None
    return file_name


def object_key(sample_id: str) -> str:
    """Return the key of an object if the name of its sample cannot be a path."""
    return f"{RESERVED}/objects/{sample_id}"


def thumbnail_key(sample_id: str) -> str:
    """Return the key of an uploaded thumbnail."""
    return f"{RESERVED}/thumbnails/{sample_id}"


@dataclass(frozen=True)
class ListedObject:
    """One object of a scan: its key, the name of its sample, its size and modification time."""

    key: str
    name: str
    size: int
    modified_ms: int


class Storage(Protocol):
    """Objects by key, with signed URLs for clients. Methods may block; any thread may call them."""

    def scan(self) -> Iterator[ListedObject]:
        """Yield the objects that become samples, in sorted order."""
        ...

    def accepts(self, key: str) -> bool:
        """Return whether a new object may have this key without affecting existing objects."""
        ...

    def exists(self, key: str) -> bool:
        """Return whether an object is stored under `key`."""
        ...

    def read_bytes(self, key: str) -> bytes | None:
        """Return the object, or None."""
        ...

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store an object, replacing an existing one."""
        ...

    def read_url(self, key: str) -> str:
        """Return a signed URL for GET."""
        ...

    def write_url(self, key: str) -> str:
        """Return a signed URL for PUT."""
        ...

    def location(self, name: str) -> str:
        """Return the location of `name`, for tag exports with DATASOURCE_FULL."""
        ...


class Blob(Protocol):
    """An object open for reading: facts that do not change while it is open."""

    size: int
    etag: str
    modified_s: float

    def read_at(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`; fewer only at the end."""
        ...

    def close(self) -> None:
        """Close the object."""
        ...


def bytes_of(blob: Blob | None) -> bytes | None:
    """Read an open object to its end and close it; None for no object."""
    if blob is None:
        return None
    try:
        return blob.read_at(0, blob.size)
    finally:
        blob.close()


class LocalStorage(Storage, Protocol):
    """A storage whose signed URLs refer to this server, which sends and receives the bytes itself."""

    def open_blob(self, key: str) -> Blob | None:
        """Open an object, or return None if there is none."""
        ...

    def begin_upload(self, key: str) -> FolderUpload:
        """Start an upload."""
        ...


_UPLOADS = f"{RESERVED}/uploads"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# without O_NONBLOCK, opening a pipe blocks until it has a writer
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class FolderBlob:
    """An open file. Its ETag is made of size and mtime, so it survives restarts and follows changes."""

    def __init__(self, fd: int, facts: os.stat_result) -> None:
        self._fd = fd
        self.size = facts.st_size
        self.modified_s = facts.st_mtime
        self.etag = file_etag(facts)

    def read_at(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`."""
        return os.pread(self._fd, length, start)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class FolderUpload:
    """A temporary file that becomes the object on commit, visible only then."""

    def __init__(self, root: ConfinedFolder, key: str) -> None:
        self._root = root
        self._key = key
        self._name = secrets.token_hex(12)
        self._folder = root.open_folder(_UPLOADS, make=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._name, flags, 0o666, dir_fd=self._folder), "wb")
        except BaseException:
            os.close(self._folder)
            raise

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)

    def commit(self) -> str:
        """Rename into place and return the ETag."""
        self._file.flush()
        facts = os.fstat(self._file.fileno())
        self._file.close()
        above, _, name = self._key.rpartition("/")
        target = self._root.open_folder(above, make=True)
        try:
            os.replace(self._name, name, src_dir_fd=self._folder, dst_dir_fd=target)
        finally:
            os.close(target)
        return file_etag(facts)

    def abort(self) -> None:
        """Remove the temporary file, if it is still there; no effect after `commit`."""
        self._file.close()
        if self._folder < 0:
            return
        try:
            os.unlink(self._name, dir_fd=self._folder)
        except FileNotFoundError:
            pass
        finally:
            os.close(self._folder)
            self._folder = -1


class FolderStorage:
    """A folder as `LocalStorage`. Any thread may use it."""

    def __init__(self, root: Path, signer: UrlSigner) -> None:
        if not root.is_dir():
            raise LocalServerError(f"{root} is not a folder")
        if not os.access(root, os.R_OK | os.X_OK, effective_ids=True):
            raise LocalServerError(f"{root} cannot be read by this user")
        self._root = ConfinedFolder(str(root))
        self._signer = signer

    def scan(self) -> Iterator[ListedObject]:
        """Yield every regular file that is not hidden, sorted by path."""
        found: list[ListedObject] = []
        left = [""]
        while left:
            prefix = left.pop()
            try:
                folder = self._root.open_folder(prefix.rstrip("/"))
            except OSError:
                continue  # it was removed, or became a link
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            left.append(f"{prefix}{entry.name}/")
                        else:
                            found += self._found(prefix + entry.name, entry)
            finally:
                os.close(folder)
        found.sort(key=lambda one: os.fsencode(one.key))
        yield from found

    def _found(self, key: str, entry: os.DirEntry[str]) -> list[ListedObject]:
        try:
            facts = self._facts(key) if entry.is_symlink() else entry.stat(follow_symlinks=False)
        except OSError:
            return []  # a broken link, a link out of the folder, or a file that was removed
        if not stat.S_ISREG(facts.st_mode):
            return []
        return [ListedObject(key, key, facts.st_size, max(0, facts.st_mtime_ns) // 1_000_000)]

    def _facts(self, key: str) -> os.stat_result:
        blob = self._root.open_file(key)
        try:
            return os.fstat(blob)
        finally:
            os.close(blob)

    def accepts(self, key: str) -> bool:
        """Return False if the path exists, runs through a file, or leaves the folder through a link."""
        path = self._path(key)
        if os.path.lexists(path):
            return False
        above = key
        while above := above.rpartition("/")[0]:
            if os.path.lexists(self._path(above)):
                break
        try:
            os.close(self._root.open_folder(above))
        except OSError:
            return False
        return True

    def exists(self, key: str) -> bool:
        """Return whether there is a file."""
        blob = self.open_blob(key)
        if blob is not None:
            blob.close()
        return blob is not None

    def read_bytes(self, key: str) -> bytes | None:
        """Return the bytes of the file, or None."""
        return bytes_of(self.open_blob(key))

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store bytes as an upload does."""
        upload = self.begin_upload(key)
        try:
            upload.write(data)
            upload.commit()
        finally:
            upload.abort()

    def read_url(self, key: str) -> str:
        """Return a signed URL for GET."""
        return self._signer.sign("GET", key)

    def write_url(self, key: str) -> str:
        """Return a signed URL for PUT."""
        return self._signer.sign("PUT", key)

    def location(self, name: str) -> str:
        """Return the absolute path of the name."""
        return f"{self._root.root}/{name}"

    def open_blob(self, key: str) -> FolderBlob | None:
        """Open a regular file, or return None."""
        self._path(key)
        try:
            fd = self._root.open_file(key)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return None
        facts = os.fstat(fd)
        if stat.S_ISREG(facts.st_mode):
            return FolderBlob(fd, facts)
        os.close(fd)
        return None

    def begin_upload(self, key: str) -> FolderUpload:
        """Start an upload to a temporary file on the same disk."""
        self._path(key)
        return FolderUpload(self._root, key)

    def _path(self, key: str) -> str:
        # keys are safe when they are created; this check holds for forged URLs too
        if not key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"not an object key: {key!r}")
        return f"{self._root.root}/{key}"


def file_etag(facts: os.stat_result) -> str:
    """Return the strong ETag of a file with this stat result."""
    return f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'


class ConfinedFolder:
    """A folder whose paths open without following a link out of it, even if the folder changes meanwhile.

    Each path is walked from the folder down, one component and one descriptor at a time, and the walk follows
    no link. A link that stays inside is resolved first, and its target is walked; one that leads out, or to a
    hidden place, counts as missing. Any thread may use it; a missing path raises `OSError`.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)

    def open_file(self, key: str) -> int:
        """Return a descriptor of a file; the caller closes it."""
        try:
            return self._open_file(key.split("/"))
        except FileNotFoundError:
            raise
        except OSError:
            pass  # a link is in the way, or another error, which the second attempt raises again
        return self._open_file(self._resolved(key))

    def open_folder(self, key: str, *, make: bool = False) -> int:
        """Return a descriptor of a folder, "" for the root; with `make`, create missing folders."""
        parts = key.split("/") if key else []
        try:
            return self._open_folder(parts, make)
        except FileNotFoundError:
            raise
        except OSError:
            pass  # a link is in the way, or another error, which the second attempt raises again
        return self._open_folder(self._resolved(key), make)

    def _open_file(self, parts: Sequence[str]) -> int:
        folder = self._open_folder(parts[:-1], False)
        try:
            return os.open(parts[-1], _FILE, dir_fd=folder)
        finally:
            os.close(folder)

    def _open_folder(self, parts: Sequence[str], make: bool) -> int:
        folder = os.open(self.root, _FOLDER)
        for part in parts:
            try:
                below = _entered(folder, part, make)
            finally:
                os.close(folder)
            folder = below
        return folder

    def _resolved(self, key: str) -> list[str]:
        """Return the components of a path after resolving links; they may change before they are walked."""
        real = os.path.realpath(f"{self.root}/{key}")
        parts = os.path.relpath(real, self.root).split(os.sep)
        if any(part.startswith(".") for part in parts):
            raise FileNotFoundError(f"{key} leads out of the folder or to a hidden place")
        return parts


def _entered(folder: int, part: str, make: bool) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(part, dir_fd=folder)
    except FileExistsError:
        pass  # another thread or process created it
    return os.open(part, _FOLDER, dir_fd=folder)


LIFETIME_MAX_S = 7 * 24 * 3600
"""The limit of SigV4."""


def parse_s3_url(url: str) -> tuple[str, str]:
    """Return bucket and prefix (without slashes at its ends) of `s3://bucket/prefix`."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise LocalServerError(f"{url} names no bucket: use s3://BUCKET or s3://BUCKET/PREFIX")
    return bucket, prefix.strip("/")


class S3Storage:
    """A bucket as `Storage`; clients transfer the bytes without this server. Any thread may use it."""

    def __init__(
        self, url: str, endpoint: str | None, public_endpoint: str | None, lifetime_s: float
    ) -> None:
        self._bucket, prefix = parse_s3_url(url)
        self._prefix = f"{prefix}/" if prefix else ""
        self._lifetime_s = max(1, min(int(lifetime_s), LIFETIME_MAX_S))
        self._client = s3_client(endpoint)
        self._signer = self._client if public_endpoint is None else s3_client(public_endpoint)

    def scan(self) -> Iterator[ListedObject]:
        """Yield every object below the prefix except those of `.lightly`, sorted by key."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        found = []
        try:
            for page in pages:
                for item in page.get("Contents", ()):
                    name = item["Key"].removeprefix(self._prefix)
                    if name and not name.endswith("/") and not name.startswith(f"{RESERVED}/"):
                        changed_ms = int(item["LastModified"].timestamp() * 1000)
                        found.append(ListedObject(name, name, item["Size"], changed_ms))
        except Exception as error:
            raise LocalServerError(f"cannot list s3://{self._bucket}/{self._prefix}: {error}") from error
        found.sort(key=lambda one: one.key)
        yield from found

    def accepts(self, key: str) -> bool:
        """Return False if the key exists or is not printable."""
        return key.isprintable() and not self.exists(key)

    def exists(self, key: str) -> bool:
        """Return whether the bucket has the object."""
        try:
            self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except self._client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
        return True

    def read_bytes(self, key: str) -> bytes | None:
        """Return the object, or None."""
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        except self._client.exceptions.NoSuchKey:
            return None
        body: bytes = answer["Body"].read()
        return body

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store an object."""
        self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def read_url(self, key: str) -> str:
        """Return a presigned GET URL."""
        return self._presigned("get_object", key)

    def write_url(self, key: str) -> str:
        """Return a presigned PUT URL."""
        return self._presigned("put_object", key)

    def location(self, name: str) -> str:
        """Return the s3:// URL of the name."""
        return f"s3://{self._bucket}/{self._prefix}{name}"

    def _presigned(self, operation: str, key: str) -> str:
        params = {"Bucket": self._bucket, "Key": self._prefix + key}
        url: str = self._signer.generate_presigned_url(operation, Params=params, ExpiresIn=self._lifetime_s)
        return url


def s3_client(endpoint: str | None) -> Any:
    """Return a boto3 client; endpoints other than AWS get path-style addresses, which all of them support."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise LocalServerError("serving a bucket needs boto3; install it with: pip install boto3") from error
    style = {"addressing_style": "path" if endpoint else "auto"}
    # newer botocore signs a checksum header into PUT URLs, which a client with only the URL cannot send
    config = Config(
        signature_version="s3v4",
        s3=style,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    try:
        # a new session, because the default session of boto3 keeps the first credentials it reads
        return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except Exception as error:
        raise LocalServerError(f"cannot set up S3 access: {error}") from error
