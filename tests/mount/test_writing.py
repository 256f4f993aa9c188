"""What writing does, whoever shows the tree: new files become samples, and nothing is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataset_files import SUBJECTS
from PIL import Image
from trees import InProcessTree, MountedTree, WritableTree, in_process, mounted, refused, soon, wait_until

from lightlyfs.testing import DropReply, Latency, LocalServer, Status


def picture(colour: tuple[int, int, int] = (200, 30, 10), size: tuple[int, int] = (300, 200)) -> bytes:
    """A real image."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def stored(server: LocalServer) -> dict[str, bytes | None]:
    """What the server holds, by name; fails where a name is there twice."""
    documents = server.samples()
    names = [document["fileName"] for document in documents]
    assert len(set(names)) == len(names), names
    return {document["fileName"]: server.object_bytes(document["id"]) for document in documents}


def document(server: LocalServer, name: str) -> dict[str, object]:
    """The one sample of a name."""
    (found,) = [d for d in server.samples() if d["fileName"] == name]
    return found


@pytest.fixture(params=SUBJECTS)
def tree(
    request: pytest.FixtureRequest, own_server: LocalServer, tmp_path: Path
) -> Iterator[InProcessTree | MountedTree]:
    """An empty dataset that may be written to, as each of the subjects."""
    if request.param == "in-process":
        with in_process(own_server, tmp_path / "tree") as subject:
            yield subject
    else:
        with mounted(own_server, tmp_path / "tree", request.param[-1]) as subject:
            yield subject


@pytest.fixture(params=SUBJECTS)
def overwriting(
    request: pytest.FixtureRequest, own_server: LocalServer, tmp_path: Path
) -> Iterator[InProcessTree | MountedTree]:
    """A dataset with one sample, `old.png`, on a mount that may replace images."""
    own_server.add_sample("old.png", picture((1, 2, 3)), {"metaData": {"custom": {"mine": 1}}})
    if request.param == "in-process":
        with in_process(own_server, tmp_path / "tree", allow_overwrite="on") as subject:
            yield subject
    else:
        options = ("--allow-overwrite",)
        with mounted(own_server, tmp_path / "tree", request.param[-1], *options) as subject:
            yield subject


def test_a_new_file_is_a_sample_when_close_returns(own_server: LocalServer, tree: WritableTree) -> None:
    data = picture()

    tree.write("cars/red/new.png", data)

    assert stored(own_server) == {"cars/red/new.png": data}
    assert tree.read("cars/red/new.png") == data
    assert tree.stat("cars/red/new.png").size == len(data)
    assert tree.names("cars/red") == ["new.png"]
    assert tree.xattr("cars/red/new.png", "user.lightly.upload") == b"uploaded"


def test_an_image_goes_with_its_facts_and_thumbnail(own_server: LocalServer, tree: WritableTree) -> None:
    tree.write("a.b.png", picture())

    found = document(own_server, "a.b.png")
    meta = found["metaData"]
    assert isinstance(meta, dict)
    assert meta["shape"] == [200, 300, 3]
    assert meta["mean"] == pytest.approx([200 / 255, 30 / 255, 10 / 255])
    assert meta["sizeInBytes"] == len(picture())
    assert found["thumbName"] == "a.b_thumb.webp"
    thumbnail = own_server.object_bytes(str(found["id"]), thumbnail=True)
    assert thumbnail is not None
    with Image.open(io.BytesIO(thumbnail)) as image:
        assert (image.format, image.size) == ("WEBP", (128, 85))


def test_a_file_that_is_no_image_goes_without_them(own_server: LocalServer, tree: WritableTree) -> None:
    tree.write("notes.txt", b"not an image")

    assert stored(own_server) == {"notes.txt": b"not an image"}
    assert "thumbName" not in document(own_server, "notes.txt")


def test_random_writes_and_truncates_leave_what_a_real_file_would_have(
    own_server: LocalServer, tree: WritableTree
) -> None:
    with tree.writing("x.bin") as file:
        file.write(0, b"a" * 10)
        file.write(100_000, b"tail")
        file.write(5, b"MIDDLE")
        file.truncate(100_002)
        file.write(100_002, b"!")
        assert file.read(0, 20) == b"aaaaaMIDDLE" + b"\0" * 9

    expected = b"aaaaaMIDDLE" + b"\0" * (100_000 - 11) + b"ta!"
    assert stored(own_server) == {"x.bin": expected}
    assert tree.read("x.bin") == expected


@pytest.mark.parametrize(
    "name", [".hidden", "x.jpg~", "x.tmp", "x.part", ".x.jpg.Ab12Cd", ".goutputstream-AAAAAA"]
)
def test_a_scratch_file_stays_here_until_it_gets_a_real_name(
    own_server: LocalServer, tree: WritableTree, name: str
) -> None:
    tree.write(name, b"unfinished")
    assert stored(own_server) == {}
    assert tree.read(name) == b"unfinished"

    tree.rename(name, "done.jpg")

    assert stored(own_server) == {"done.jpg": b"unfinished"}
    assert tree.names() == ["done.jpg"]


def test_an_empty_file_stays_here_until_it_gets_content(own_server: LocalServer, tree: WritableTree) -> None:
    tree.write("e.jpg", b"")
    assert stored(own_server) == {}
    assert tree.stat("e.jpg").size == 0

    with tree.writing("e.jpg", create=False) as file:
        file.write(0, b"now")

    assert stored(own_server) == {"e.jpg": b"now"}


def test_a_local_file_can_be_removed_and_a_sample_cannot(own_server: LocalServer, tree: WritableTree) -> None:
    tree.write("gone.tmp", b"x")
    tree.unlink("gone.tmp")
    assert tree.names() == []

    tree.write("stays.jpg", b"x")
    with refused(errno.EPERM):
        tree.unlink("stays.jpg")
    assert stored(own_server) == {"stays.jpg": b"x"}


def test_a_sample_is_not_replaced_without_leave(own_server: LocalServer, tree: WritableTree) -> None:
    tree.write("a.jpg", b"first")

    with refused(errno.EPERM):
        tree.write("a.jpg", b"second")
    tree.write("b.tmp", b"second")
    with refused(errno.EPERM):
        tree.rename("b.tmp", "a.jpg")

    assert stored(own_server) == {"a.jpg": b"first"}
    assert tree.read("a.jpg") == b"first"
    assert tree.read("b.tmp") == b"second"
    if isinstance(tree, MountedTree):
        why = "not replaced, for want of --allow-overwrite: a.jpg\n"
        assert why in tree.run("status", str(tree.mountpoint)).stdout
        assert "mount with --allow-overwrite to replace images" in tree.log.read_text()


def test_a_sample_is_renamed_on_the_server(own_server: LocalServer, tree: WritableTree) -> None:
    tree.write("a.jpg", b"content")
    sample_id = document(own_server, "a.jpg")["id"]

    tree.rename("a.jpg", "dir/b.jpg")

    assert document(own_server, "dir/b.jpg")["id"] == sample_id
    assert tree.names() == ["dir"]
    assert tree.names("dir") == ["b.jpg"]
    assert tree.read("dir/b.jpg") == b"content"
    with refused(errno.ENOENT):
        tree.stat("a.jpg")


def test_a_sample_that_was_there_before_is_renamed_and_a_listing_says_the_same(
    own_server: LocalServer, tree: WritableTree
) -> None:
    own_server.add_sample("a.jpg", b"content")
    own_server.add_sample("other.jpg", b"other")
    tree.refresh()

    tree.rename("a.jpg", "b.jpg")
    assert tree.names() == ["b.jpg", "other.jpg"]
    assert tree.read("b.jpg") == b"content"
    with refused(errno.EPERM):
        tree.rename("b.jpg", "other.jpg")
    tree.refresh()

    assert tree.names() == ["b.jpg", "other.jpg"]
    assert tree.read("b.jpg") == b"content"


def test_a_directory_of_samples_is_renamed(own_server: LocalServer, tree: WritableTree) -> None:
    for number in range(3):
        own_server.add_sample(f"old/deep/{number}.jpg", str(number).encode())
    tree.refresh()
    tree.write("old/new.jpg", b"new")

    tree.rename("old", "new")

    assert stored(own_server) == {
        "new/deep/0.jpg": b"0",
        "new/deep/1.jpg": b"1",
        "new/deep/2.jpg": b"2",
        "new/new.jpg": b"new",
    }
    assert tree.names() == ["new"]
    assert tree.names("new") == ["deep", "new.jpg"]
    assert tree.names("new/deep") == ["0.jpg", "1.jpg", "2.jpg"]


def test_directories_live_here_until_they_are_removed_or_filled(
    own_server: LocalServer, tree: WritableTree
) -> None:
    tree.mkdir("a")
    tree.mkdir("a/b")
    with refused(errno.EEXIST):
        tree.mkdir("a/b")
    with refused(errno.ENOTEMPTY):
        tree.rmdir("a")
    tree.rmdir("a/b")
    tree.rmdir("a")
    assert tree.names() == []

    tree.mkdir("c")
    tree.write("c/x.jpg", b"x")
    assert stored(own_server) == {"c/x.jpg": b"x"}
    with refused(errno.ENOTEMPTY):
        tree.rmdir("c")


@pytest.mark.parametrize("name", [".Trash-0", ".Trash"])
def test_there_is_no_trash(tree: WritableTree, own_server: LocalServer, name: str) -> None:
    tree.write("a.jpg", b"x")

    with refused(errno.EPERM):
        tree.mkdir(name)
    with refused(errno.EPERM):
        tree.rename("a.jpg", f"{name}x")
    assert stored(own_server) == {"a.jpg": b"x"}


@pytest.mark.parametrize("name", ["a%2Fb.jpg", "d/%2Elightlyfs", "%2Ejpg"])
def test_a_name_that_would_come_back_as_another_is_refused(
    tree: WritableTree, own_server: LocalServer, name: str
) -> None:
    with refused(errno.EINVAL):
        tree.write(name, b"x")
    assert own_server.samples() == []


@pytest.mark.parametrize("name", ["a%00.jpg", "x%ED%A0%80.jpg", "d%00/a.jpg"])
def test_nothing_new_gets_a_name_that_is_no_text(
    tree: WritableTree, own_server: LocalServer, name: str
) -> None:
    tree.write("sane.jpg", b"sane")
    tree.mkdir("d%00")
    tree.mkdir("dir")
    tree.write("dir/x.tmp", b"local")

    with refused(errno.EINVAL):
        tree.write(name, b"x")
    for old in ("sane.jpg", "dir/x.tmp"):
        with refused(errno.EINVAL):
            tree.rename(old, name)

    assert stored(own_server) == {"sane.jpg": b"sane"}
    assert tree.read("dir/x.tmp") == b"local"


def test_a_local_file_may_have_a_name_that_is_no_text(tree: WritableTree, own_server: LocalServer) -> None:
    tree.write("a%00.tmp", b"local")
    assert tree.read("a%00.tmp") == b"local"
    assert own_server.samples() == []


def test_a_directory_is_not_renamed_so_that_samples_get_names_that_are_no_text(
    tree: WritableTree, own_server: LocalServer
) -> None:
    tree.mkdir("d")
    tree.write("d/a.jpg", b"a")
    with refused(errno.EINVAL):
        tree.rename("d", "e%00")
    assert stored(own_server) == {"d/a.jpg": b"a"}


def test_a_set_time_is_kept_with_the_content(own_server: LocalServer, tree: WritableTree) -> None:
    tree.write("a.jpg", b"x")
    tree.set_mtime("a.jpg", 1_600_000_000)
    assert tree.stat("a.jpg").mtime == 1_600_000_000

    tree.refresh()

    assert tree.stat("a.jpg").mtime == 1_600_000_000


def test_a_set_time_goes_with_the_content_it_was_set_on(own_server: LocalServer, tree: WritableTree) -> None:
    tree.write("a.jpg", b"one")
    tree.set_mtime("a.jpg", 1_600_000_000)
    own_server.replace_object(str(document(own_server, "a.jpg")["id"]), b"two")

    tree.refresh()

    assert tree.read("a.jpg") == b"two"
    soon(lambda: tree.stat("a.jpg").mtime != 1_600_000_000)


def test_custom_metadata_are_set_by_attribute(own_server: LocalServer, tree: WritableTree) -> None:
    tree.write("a.jpg", b"x")
    name = "user.lightly.custom_metadata"

    tree.set_xattr("a.jpg", name, b'{"scene": "night"}')

    assert document(own_server, "a.jpg")["customMetaData"] == {"scene": "night"}
    assert json.loads(tree.xattr("a.jpg", name)) == {"scene": "night"}
    with refused(errno.EINVAL):
        tree.set_xattr("a.jpg", name, b"not json")
    sample_id = tree.xattr("a.jpg", "user.lightly.sample_id")
    tree.set_xattr("a.jpg", "user.lightly.sample_id", b"x")
    assert tree.xattr("a.jpg", "user.lightly.sample_id") == sample_id
    with refused(errno.ENOTSUP):
        tree.set_xattr("a.jpg", "user.other", b"x")


def test_a_replaced_image_keeps_its_id_and_other_peoples_metadata(
    own_server: LocalServer, overwriting: WritableTree
) -> None:
    before = document(own_server, "old.png")
    data = picture((9, 9, 9), (64, 32))

    overwriting.write("old.png", data)

    after = document(own_server, "old.png")
    assert after["id"] == before["id"]
    assert own_server.object_bytes(str(after["id"])) == data
    meta = after["metaData"]
    assert isinstance(meta, dict)
    assert (meta["sizeInBytes"], meta["shape"], meta["custom"]) == (len(data), [32, 64, 3], {"mine": 1})
    assert overwriting.read("old.png") == data
    assert overwriting.stat("old.png").size == len(data)


def test_samples_whose_names_are_no_text_are_read_replaced_and_renamed(
    own_server: LocalServer, overwriting: WritableTree
) -> None:
    for name in ("d/nul\0.png", "d/\ud800.png"):
        own_server.add_sample(name, name.encode("utf-8", "surrogatepass"))
    overwriting.refresh()
    soon(lambda: "d" in overwriting.names())
    assert overwriting.read("d/nul%00.png") == b"d/nul\0.png"

    overwriting.write("d/nul%00.png", b"written")
    overwriting.write("d/x.tmp", b"renamed over")
    overwriting.rename("d/x.tmp", "d/%ED%A0%80.png")
    overwriting.rename("d", "e")
    expected = {"e/nul\0.png": b"written", "e/\ud800.png": b"renamed over"}
    assert {name: data for name, data in stored(own_server).items() if name != "old.png"} == expected

    overwriting.rename("e/nul%00.png", "e/nul.png")
    overwriting.rename("e/%ED%A0%80.png", "e/lone.png")
    expected = {"e/nul.png": b"written", "e/lone.png": b"renamed over"}
    assert {name: data for name, data in stored(own_server).items() if name != "old.png"} == expected
    with refused(errno.EINVAL):
        overwriting.rename("e/nul.png", "e/nul%00.png")


def test_an_image_is_changed_in_place_and_appended_to(
    own_server: LocalServer, overwriting: WritableTree
) -> None:
    original = overwriting.read("old.png")

    with overwriting.writing("old.png", create=False) as file:
        file.write(3, b"XYZ")
    with overwriting.writing("old.png", create=False) as file:
        file.write(len(original), b"more")

    expected = original[:3] + b"XYZ" + original[6:] + b"more"
    assert stored(own_server) == {"old.png": expected}
    assert overwriting.read("old.png") == expected


def test_a_finished_file_renamed_over_a_sample_replaces_it(
    own_server: LocalServer, overwriting: WritableTree
) -> None:
    sample_id = document(own_server, "old.png")["id"]
    overwriting.write(".old.png.Xy12Ab", b"replaced")

    overwriting.rename(".old.png.Xy12Ab", "old.png")

    assert stored(own_server) == {"old.png": b"replaced"}
    assert document(own_server, "old.png")["id"] == sample_id
    assert overwriting.read("old.png") == b"replaced"
    assert overwriting.names() == ["old.png"]


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (Status(status=403, target="withWriteUrls"), errno.EACCES),
        (Status(status=400, code="DATASET_AT_MAX_CAPACITY", target="withWriteUrls"), errno.ENOSPC),
        (Status(status=413, code="PAYLOAD_TOO_LARGE", target="withWriteUrls"), errno.EFBIG),
    ],
)
def test_a_refused_upload_fails_close_and_the_file_stays_and_is_retried(
    own_server: LocalServer, tree: WritableTree, fault: Status, number: int
) -> None:
    own_server.faults.add(fault)

    with refused(number):
        tree.write("a.jpg", b"content")

    assert tree.read("a.jpg") == b"content"
    # a token or a permission may come back; what is too large never fits
    state = b"pending: " if number == errno.EACCES else b"failed: "
    assert tree.xattr("a.jpg", "user.lightly.upload").startswith(state)
    own_server.faults.clear()
    tree.retry_uploads()
    wait_until(lambda: stored(own_server) == {"a.jpg": b"content"}, 20)
    soon(lambda: tree.xattr("a.jpg", "user.lightly.upload") == b"uploaded")


@pytest.mark.parametrize(
    "fault",
    [
        DropReply(target="withWriteUrls", count=1),
        DropReply(target="storage.put", count=2),
        Status(status=503, target="withWriteUrls", count=2),
        Status(status=503, target="storage.put", count=2),
        Status(status=429, target="withWriteUrls", count=1, retry_after_s=1),
        Status(status=403, target="storage.put", count=1),
        Status(status=404, target="withWriteUrls"),
    ],
)
def test_a_passing_fault_leaves_exactly_one_sample(
    own_server: LocalServer, tree: WritableTree, fault: object
) -> None:
    own_server.faults.add(fault)  # type: ignore[arg-type]
    try:
        tree.write("a.png", picture())
    except OSError:
        tree.retry_uploads()
        wait_until(lambda: tree.xattr("a.png", "user.lightly.upload") == b"uploaded", 30)

    assert stored(own_server) == {"a.png": picture()}


def test_a_file_is_read_while_it_is_written_and_while_it_waits(
    own_server: LocalServer, tree: WritableTree
) -> None:
    own_server.faults.add(Latency(delay_s=0.5, target="storage.put"))
    with tree.writing("a.jpg") as file:
        file.write(0, b"half")
        assert tree.read("a.jpg") == b"half"
        assert tree.xattr("a.jpg", "user.lightly.upload") == b"being written"
        file.write(4, b" full")
        closing = threading.Thread(target=file.close)
        closing.start()
        assert tree.read("a.jpg") == b"half full"
        closing.join()

    assert stored(own_server) == {"a.jpg": b"half full"}


def test_links_and_devices_are_refused(tree: WritableTree, own_server: LocalServer) -> None:
    if isinstance(tree, InProcessTree):
        pytest.skip("the file system object is never asked for links")
    assert isinstance(tree, MountedTree)
    tree.write("a.jpg", b"x")
    for make in (os.symlink, os.link):
        with refused(errno.EPERM):
            make(tree.mountpoint / "a.jpg", tree.mountpoint / "b.jpg")
    with refused(errno.EPERM):
        os.mkfifo(tree.mountpoint / "fifo")


def test_a_sample_that_was_replaced_has_one_name_and_its_new_bytes_after_a_remount(
    own_server: LocalServer, tmp_path: Path
) -> None:
    with in_process(own_server, tmp_path / "tree", allow_overwrite="on") as tree:
        tree.write("a.jpg", b"first")
        tree.write("a.tmp", b"second")
        tree.rename("a.tmp", "a.jpg")

    with in_process(own_server, tmp_path / "tree", allow_overwrite="on") as tree:
        assert tree.names() == ["a.jpg"]
        assert tree.read("a.jpg") == b"second"
        tree.refresh()
        assert tree.names() == ["a.jpg"]
        assert tree.read("a.jpg") == b"second"


def test_a_new_sample_stays_in_view_where_replacing_it_fails(own_server: LocalServer, tmp_path: Path) -> None:
    with in_process(own_server, tmp_path / "tree", allow_overwrite="on") as tree:
        tree.write("a.jpg", b"first")
        tree.write("a.tmp", b"second")
        own_server.faults.add(Status(status=403, target="writeurls"), Status(status=403, target="writeurl"))

        with refused(errno.EACCES):
            tree.rename("a.tmp", "a.jpg")

        assert tree.names() == ["a.jpg", "a.tmp"]
        assert tree.read("a.jpg") == b"first"
        assert tree.read("a.tmp") == b"second"
