"""One GET, from its first to its last byte, as `curl` does it: URL; prints seconds and bytes."""

from __future__ import annotations

import sys
import time

import pycurl


def main(url: str) -> None:
    """Count what comes, keep nothing."""
    handle = pycurl.Curl()
    total = 0

    def count(data: bytes) -> None:
        nonlocal total
        total += len(data)

    handle.setopt(pycurl.URL, url)
    handle.setopt(pycurl.WRITEFUNCTION, count)
    handle.setopt(pycurl.FAILONERROR, True)
    handle.setopt(pycurl.BUFFERSIZE, 1 << 19)
    started = time.perf_counter()
    handle.perform()
    print(time.perf_counter() - started, total)


if __name__ == "__main__":
    main(sys.argv[1])
