"""What was cached stays readable while the API is away, also where it was to be confirmed."""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import in_process

from lightlyfs.api.retry import RetryPolicy
from lightlyfs.errors import LightlyFsError
from lightlyfs.testing import LocalServer, ServerOptions


def test_a_cached_file_that_was_to_be_confirmed_is_read_without_a_server(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"cached")
    server = LocalServer(ServerOptions(source=tmp_path / "images"))
    with server, in_process(server, tmp_path / "tree", read_only="on") as tree:
        assert tree.read("a.jpg") == b"cached"
        tree.refresh()
        tree.parts.client.retrier.policy = RetryPolicy(budget_s=2.0)  # how patient it is, is not asked here
        server.stop()
        with pytest.raises(LightlyFsError):
            tree.parts.catalog.refresher.check_soon().result(60)

        assert tree.read("a.jpg") == b"cached"
