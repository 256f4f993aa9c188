"""Reading over connections that stood still (resume from sleep, another network, a VPN), or are slow."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from freezing_proxy import FreezingProxy
from trees import free_port, in_process, use_here

from lightlyfs.blocks import BLOCK_BYTES
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import Fault, LocalServer, ServerOptions
from lightlyfs.testing.faults import collected

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


class InPieces(Fault, frozen=True, kw_only=True):
    """Send the body a megabyte at a time."""

    target: str = "storage.get"

    def wrap(self, app: Any, held: Any) -> Any:
        """Pause before each piece, for longer than a reader looks away."""

        async def send_slowly(scope: Any, receive: Any, send: Any) -> None:
            start, body = await collected(app, scope, receive)
            await send(start)
            for begin in range(0, len(body), 1 << 20):
                await asyncio.sleep(0.25)
                piece = {"body": body[begin : begin + (1 << 20)], "more_body": True}
                await send({"type": "http.response.body", **piece})
            await send({"type": "http.response.body"})

        return send_slowly


def test_a_large_file_is_read_at_once_as_long_as_it_keeps_coming(tmp_path: Path) -> None:
    """Whatever that takes in all; by the clock of this test twenty seconds a block, three minutes."""
    data = os.urandom(9 << 20)
    (tmp_path / "served").mkdir()
    (tmp_path / "served/large.bin").write_bytes(data)
    options = ServerOptions(source=tmp_path / "served", dataset_name="cars")
    with LocalServer(options) as server, in_process(server, tmp_path / "home") as tree:
        server.faults.add(InPieces())  # type: ignore[arg-type]
        stats = tree.parts.samples._reader.stats
        tree.parts.patience.clock = lambda: 20.0 * stats().fetched_bytes / BLOCK_BYTES
        assert tree.read("large.bin") == data
