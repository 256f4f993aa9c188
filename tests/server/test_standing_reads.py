"""Reading after all connections stood still: resume from sleep, another network, a VPN."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from freezing_proxy import FreezingProxy
from trees import free_port, use_here

from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions

FILES = {f"{number:02}.bin": os.urandom(50_000) for number in range(64)}


def test_the_first_file_comes_within_five_seconds_and_the_next_at_full_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 s, and 40 more, when each request waited for its own end."""
    root = tmp_path / "served"
    root.mkdir()
    for name, data in FILES.items():
        (root / name).write_bytes(data)
    port = free_port()
    with FreezingProxy(port) as proxy:
        options = ServerOptions(source=root, dataset_name="cars", port=port, public_url=proxy.url)
        with LocalServer(options) as server:
            use_here(server, tmp_path / "home", monkeypatch)
            fs = fsspec.filesystem("lightly", skip_instance_cache=True)
            names = list(FILES)
            with ThreadPoolExecutor(16) as pool:
                warm = list(pool.map(lambda name: fs.cat(f"cars/{name}"), names[:32]))
            assert warm == [FILES[name] for name in names[:32]]
            proxy.freeze()
            took = []
            for name in names[32:]:
                started = time.monotonic()
                assert fs.cat(f"cars/{name}") == FILES[name]
                took.append(time.monotonic() - started)
            fsspec_parts.close_all()
    # some of the first may have been on their way already
    assert max(took) < 5
    assert sum(took) - max(took) < 2
