"""A read URL is asked for once, also over remounts."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from dataset_files import FILES, fill
from trees import InProcessTree, in_process

from lightlyfs.testing import LocalServer, ServerOptions


def urls_asked_for(server: LocalServer, tree: InProcessTree) -> int:
    """Read every file; how many URLs the server was asked for meanwhile."""
    server.stats.reset()
    for name, data in FILES.items():
        assert tree.read(name) == data
    requests = server.stats.snapshot()["requests"]
    return sum(sum(requests.get(name, {}).values()) for name in ("readurl", "redirect"))


def test_a_remount_asks_for_no_url_even_where_it_lost_the_blocks(server: LocalServer, tmp_path: Path) -> None:
    with in_process(server, tmp_path) as tree:
        place = tree.parts.place.path
        assert urls_asked_for(server, tree) == len(FILES)
    shutil.rmtree(place / "blocks")
    (place / "blocks.db").unlink()

    with in_process(server, tmp_path) as tree:
        assert urls_asked_for(server, tree) == 0
    # another credential has to ask for its own; that a file is empty is known by now
    shutil.rmtree(place / "blocks")
    (place / "blocks.db").unlink()
    with in_process(server, tmp_path, read_mode="redirect") as tree:
        assert urls_asked_for(server, tree) == sum(bool(data) for data in FILES.values())


def test_without_a_cache_no_url_outlives_the_mount(server: LocalServer, tmp_path: Path) -> None:
    with in_process(server, tmp_path, no_cache="on") as tree:
        assert urls_asked_for(server, tree) == len(FILES)
    assert list(tmp_path.rglob("urls.db*")) == []


def test_a_shuffled_epoch_has_its_urls_got_ahead_and_each_once(tmp_path: Path) -> None:
    files = {f"d/{number:03}.bin": random.Random(number).randbytes(1000) for number in range(200)}
    source = fill(tmp_path / "images", files)
    names = random.Random(1).sample(sorted(files), len(files))
    with (
        LocalServer(ServerOptions(source=source, dataset_name="shuffled")) as own,
        in_process(own, tmp_path / "tree", cache_size="200K") as tree,  # no room for all the contents
    ):
        for name in names:
            assert tree.read(name) == files[name]
        assert tree.parts.url_stats()["got"] > 20
        assert sum(own.stats.snapshot()["requests"]["readurl"].values()) <= len(files)
