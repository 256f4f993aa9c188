"""Which file names may be object keys as they are. Pure.

A sample may be called anything; its object lives under its name only where that is a plain relative path. All
other objects live below `.lightly/objects`, named by sample id, so a name is never joined blindly.
"""

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
    """Return the key of an object whose sample has a name that cannot be a path."""
    return f"{RESERVED}/objects/{sample_id}"


def thumbnail_key(sample_id: str) -> str:
    """Return the key of an uploaded thumbnail."""
    return f"{RESERVED}/thumbnails/{sample_id}"
