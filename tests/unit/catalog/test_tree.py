"""Sample names to paths: legal, one to one, and the same whatever the order of the samples."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightlyfs.catalog.names import (
    is_component,
    is_plain_component,
    join_name,
    resolve_clashes,
    split_name,
)

PIECES = st.one_of(
    st.sampled_from(
        [
            "",
            "/",
            "//",
            ".",
            "..",
            "%",
            "%2F",
            "%25",
            "%00",
            "%FE",
            "%ED%A0%80",
            "\0",
            "\ud800",
            "a",
            "é",
            ".lightlyfs",
        ]
    ),
    st.text(st.characters(), max_size=4),
)
HOSTILE = st.lists(PIECES, max_size=6).map("".join)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("car/green/frame0.png", ("car", "green", "frame0.png")),
        ("", ("%FE",)),
        ("/", ("%2F",)),
        ("//", ("%2F%2F",)),
        ("/x", ("%2Fx",)),
        ("x/", ("x%2F",)),
        ("x//", ("x%2F%2F",)),
        ("a//b", ("a", "%2Fb")),
        (".", ("%2E",)),
        ("../../etc/passwd", ("%2E%2E", "%2E%2E", "etc", "passwd")),
        ("/../x", ("%2F%2E%2E", "x")),
        ("a\0b", ("a%00b",)),
        ("\ud800", ("%ED%A0%80",)),
        ("100%", ("100%",)),
        ("50%20off", ("50%20off",)),
        ("a%2Fb", ("a%252Fb",)),
        (".lightlyfs/x", ("%2Elightlyfs", "x")),
        ("a/.lightlyfs", ("a", ".lightlyfs")),
    ],
)
def test_a_name_becomes_this_path(name: str, path: tuple[str, ...]) -> None:
    assert path == split_name(name)
    assert name == join_name(path)


@given(HOSTILE)
@example("/" * 300)
@example("a/" * 200 + "b" * 300)
def test_every_component_is_legal_on_linux(name: str) -> None:
    components = split_name(name)

    assert components
    for component in components:
        raw = component.encode()
        assert 1 <= len(raw) <= 255
        assert component not in (".", "..")
        assert b"/" not in raw
        assert b"\0" not in raw
    assert components[0] != ".lightlyfs"


@given(HOSTILE)
def test_escaping_is_undone_exactly(name: str) -> None:
    if max(len(part) for part in name.split("/")) < 20:
        assert name == join_name(split_name(name))


@given(HOSTILE, HOSTILE)
def test_two_names_never_share_a_path(one: str, other: str) -> None:
    if one != other:
        assert split_name(one) != split_name(other)


@pytest.mark.parametrize("path", [("a%2Fb",), ("%2E",), ("x" * 246 + "~01234567",), ("%2e",), ("%25",)])
def test_a_path_maps_back_to_itself_or_to_no_name(path: tuple[str, ...]) -> None:
    name = join_name(path)

    assert name is None or path == split_name(name)


def test_an_escape_in_the_wrong_place_belongs_to_no_name() -> None:
    assert join_name(("%2Elightlyfsx",)) is None
    assert join_name(("a%2Fb",)) is None


def test_a_long_part_is_cut_with_a_digest_and_keeps_its_extension() -> None:
    (component,) = split_name("é" * 200 + ".jpeg")

    assert len(component.encode()) <= 255
    assert component.endswith(".jpeg")
    assert component[-14:-13] == "~"


def test_the_lowest_id_keeps_the_plain_name() -> None:
    ids = ["b" * 24, "a" * 24, "c" * 24]

    names = resolve_clashes("x.jpg", ids, set(), is_directory=False)

    assert names == {"a" * 24: "x.jpg", "b" * 24: "x~bbbbbbbb.jpg", "c" * 24: "x~cccccccc.jpg"}


def test_a_sample_beside_a_directory_of_its_name_gives_way() -> None:
    assert resolve_clashes("x", ["a" * 24], {"x"}, is_directory=True) == {"a" * 24: "x~aaaaaaaa"}


def test_a_suffix_that_is_taken_is_not_given_out() -> None:
    names = resolve_clashes("x.jpg", ["a" * 24, "b" * 24], {"x~bbbbbbbb.jpg"}, is_directory=False)

    assert names["b" * 24] == "x~" + "b" * 24 + ".jpg"


@given(st.permutations(["a" * 24, "b" * 24, "1" * 16 + "b" * 8, "2" * 16 + "b" * 8]))
def test_the_order_of_the_samples_does_not_matter(ids: list[str]) -> None:
    assert resolve_clashes("x", ids, (), is_directory=False) == resolve_clashes(
        "x", sorted(ids), (), is_directory=False
    )


@given(st.sets(st.text("0123456789abcdef", min_size=24, max_size=24), min_size=1, max_size=5), st.booleans())
def test_no_two_samples_get_one_name(ids: set[str], is_directory: bool) -> None:
    wanted = "x" * 255
    names = resolve_clashes(wanted, ids, {wanted} if is_directory else (), is_directory=is_directory)

    assert len(set(names.values())) == len(ids)
    assert all(len(name) <= 255 for name in names.values())


def digest(component: str) -> str:
    return "~" + hashlib.sha256(component.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    ("stem", "extension", "kept"),
    [
        ("a" * 251, ".jpg", 251),  # 255 bytes: not cut
        ("a" * 252, ".jpg", 242),
        ("a" * 300, "", 246),
        ("a" * 300, "." + "x" * 32, 213),
        ("é" * 150, ".jpg", 121),  # of two bytes each
        ("aé" * 120, ".jpg", 161),  # a character that would be cut in two goes whole
    ],
)
def test_a_part_over_255_bytes_is_cut_before_its_extension(stem: str, extension: str, kept: int) -> None:
    mark = "" if kept == len(stem) else digest(stem + extension)
    assert split_name(stem + extension) == (stem[:kept] + mark + extension,)
    assert len((stem[:kept] + mark + extension).encode()) in (254, 255)


def test_what_is_longer_than_an_extension_is_none() -> None:
    name = "a" * 240 + "." + "x" * 33
    assert split_name(name) == (name[:246] + digest(name),)
    assert split_name("." + "x" * 300) == (("." + "x" * 300)[:246] + digest("." + "x" * 300),)


@pytest.mark.parametrize(("stem", "kept"), [("a" * 242, 242), ("a" * 243, 233)])
def test_a_suffix_has_its_room_too(stem: str, kept: int) -> None:
    wanted, ids = stem + ".jpg", ["0" * 24, "0" * 16 + "12345678"]
    names = resolve_clashes(wanted, ids, {wanted}, is_directory=False)
    mark = "" if kept == len(stem) else digest(wanted)
    assert names == {ids[0]: wanted, ids[1]: stem[:kept] + mark + "~12345678.jpg"}
    assert len(names[ids[1]]) in (255, 246 + 9)


def test_a_name_that_is_taken_gets_the_whole_id_and_then_more() -> None:
    one, two = "0" * 24, "1" * 24
    taken = {"x.jpg", "x~00000000.jpg", f"x~{one}.jpg", f"x~{one}~.jpg"}
    names = resolve_clashes("x.jpg", [two, one], taken, is_directory=True)
    assert names == {one: f"x~{one}~~.jpg", two: "x~11111111.jpg"}


@pytest.mark.parametrize(("depth", "folded"), [(256, False), (257, True)])
def test_directories_beyond_256_become_one_component(depth: int, folded: bool) -> None:
    path = split_name("/".join(["d"] * depth + ["x.jpg"]))
    assert len(path) == 257
    assert path[-1] == ("d%2Fx.jpg" if folded else "x.jpg")


@pytest.mark.parametrize(("last", "folded"), [(99, False), (100, True)])
def test_directories_beyond_3000_bytes_become_one_component(last: int, folded: bool) -> None:
    """29 of 100 bytes with their slashes, and one more."""
    path = split_name("/".join(["d" * 99] * 29 + ["d" * last, "x.jpg"]))
    assert len(path) == (30 if folded else 31)
    assert path[-1] == ("d" * last + "%2Fx.jpg" if folded else "x.jpg")


@pytest.mark.parametrize(
    ("name", "first", "is_one"),
    [
        ("x.jpg", True, True),
        ("", False, False),
        (".", False, False),
        ("..", False, False),
        ("...", False, True),
        (".lightlyfs", True, False),
        (".lightlyfs", False, True),
        ("a/b", False, False),
        ("a\0b", False, False),
        ("é" * 127 + "a", False, True),
        ("é" * 128, False, False),
    ],
)
def test_a_component_is_what_linux_takes(name: str, first: bool, is_one: bool) -> None:
    assert is_component(name, first=first) == is_one


@pytest.mark.parametrize(
    ("name", "is_plain"),
    [("x.jpg", True), (".x", False), ("", False), ("a" * 63, True), ("a" * 64, False), ("a%b", False)],
)
def test_a_plain_component_is_its_own_wherever_it_stands(name: str, is_plain: bool) -> None:
    assert is_plain_component(name) == is_plain
    if is_plain:
        assert split_name(name) == (name,)
