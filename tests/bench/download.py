"""Downloads all samples before they are used, as scripts do: DIRECTORY THREADS requests|urllib3.

Each sample costs a read URL and its bytes; where from is in the environment that `lightlyfs serve` prints.
Prints seconds and bytes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
import urllib3

Get = Callable[[str], bytes]
SERVER = os.environ.get("LIGHTLY_SERVER_LOCATION", "")
DATASET = os.environ.get("LIGHTLY_DATASET_ID", "")
TOKEN = os.environ.get("LIGHTLY_TOKEN", "")


def getter(client: str, threads: int) -> Get:
    """How a script gets a URL: a requests session for each thread, or one pool of urllib3."""
    if client == "urllib3":
        pool = urllib3.PoolManager(maxsize=threads)
        return lambda url: pool.request("GET", url).data
    sessions = threading.local()

    def get(url: str) -> bytes:
        if not hasattr(sessions, "session"):
            sessions.session = requests.Session()
        answer = sessions.session.get(url, timeout=60)
        answer.raise_for_status()
        return bytes(answer.content)

    return get


def sample_ids() -> list[str]:
    """The ids of all samples, in the order of their names."""
    samples = f"{SERVER}/v1/datasets/{DATASET}/samples"
    answer = requests.get(f"{samples}?pageSize=100000&token={TOKEN}", timeout=60)
    answer.raise_for_status()
    return [sample["id"] for sample in sorted(answer.json(), key=lambda sample: str(sample["fileName"]))]


def main(directory: Path, threads: int, client: str) -> None:
    """Download, add up; listing does not count, for a mount's does not either."""
    ids = sample_ids()
    get = getter(client, threads)

    def download(sample_id: str) -> int:
        url = f"{SERVER}/v1/datasets/{DATASET}/samples/{sample_id}/readurl?type=full&token={TOKEN}"
        return (directory / f"{sample_id}.jpg").write_bytes(get(json.loads(get(url))))

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as executor:
        total = sum(executor.map(download, ids))
    print(time.perf_counter() - started, total)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
