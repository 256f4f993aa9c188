"""`fsspec.fuse` of a bucket, as its documentation shows it: PORT BUCKET MOUNTPOINT."""

from __future__ import annotations

import sys

import fsspec
from fsspec.fuse import run


def main(port: str, bucket: str, mountpoint: str) -> None:
    """Mount until ended; one thread, which fsspec calls the more stable way."""
    filesystem = fsspec.filesystem("s3", client_kwargs={"endpoint_url": f"http://127.0.0.1:{port}"})
    run(filesystem, f"{bucket}/", mountpoint, foreground=True, threads=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
