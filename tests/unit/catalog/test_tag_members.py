"""Which samples a tag holds, and a listing of those alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from lightlyfs.catalog.entries import Row, make_row
from lightlyfs.catalog.remote import DatasetState, TaggedRemote
from lightlyfs.catalog.tags import ID_BYTES, TagRecord, Tags, members_of
from lightlyfs.errors import NotFound


def ident(number: int) -> bytes:
    return number.to_bytes(ID_BYTES, "big")


MAPPING = b"".join(ident(number) for number in (9, 8, 7, 6, 5, 4, 3))


@pytest.mark.parametrize(
    ("mask", "numbers"),
    [
        ("0x59", {9, 6, 5, 3}),  # bits 0, 3, 4 and 6: the example of the API's documentation
        ("0x0", set()),
        ("0x1", {9}),
        ("0x7f", {9, 8, 7, 6, 5, 4, 3}),
        ("0xfff", {9, 8, 7, 6, 5, 4, 3}),  # bits past the end select nothing
        ("0xF", {9, 8, 7, 6}),
    ],
)
def test_the_lowest_bit_is_the_first_of_the_mappings(mask: str, numbers: set[int]) -> None:
    assert members_of(mask, MAPPING) == {ident(number) for number in numbers}


def test_a_mask_of_a_million_bits_is_decoded() -> None:
    mapping = bytes(ID_BYTES * 1_000_000)
    assert members_of("0x" + "f" * 250_000, mapping) == {bytes(ID_BYTES)}


@dataclass
class Source:
    """The API; `asked` counts what it was asked for."""

    listed: list[TagRecord]
    asked: list[str] = field(default_factory=list)

    def tags(self) -> Sequence[TagRecord]:
        self.asked.append("tags")
        return self.listed

    def mapping(self) -> bytes:
        self.asked.append("mapping")
        return MAPPING


GOOD = TagRecord("a" * 24, "good ones", "0x3")


def test_tags_are_kept_for_the_ttl_and_members_while_the_mask_stays() -> None:
    now, source = [0.0], Source([GOOD])
    tags = Tags(source, ttl_s=60, clock=lambda: now[0])
    for _ in range(3):
        tag = tags.find("good ones")
        assert tag is not None
        assert tags.members(tag) == {ident(9), ident(8)}
    assert source.asked == ["tags", "mapping"]

    now[0] = 61
    assert tags.find("a" * 24) == GOOD
    assert tags.members(GOOD) == {ident(9), ident(8)}
    assert source.asked == ["tags", "mapping", "tags"]

    source.listed = [GOOD._replace(mask="0x4")]
    tags.forget_all()
    tag = tags.find("good ones")
    assert tag is not None
    assert tags.members(tag) == {ident(7)}
    assert tags.find("no such") is None


class Dataset:
    """`Remote` of three samples."""

    def dataset(self) -> DatasetState:
        return DatasetState("cars", 3, 0, 1, 1)

    def page(self, offset: int, size: int) -> Sequence[Row]:
        return [make_row(ident(n).hex(), f"{n}.jpg", 1, 1, 1) for n in (9, 8, 7)][offset : offset + size]

    def kept(self, rows: Sequence[Row]) -> Sequence[Row]:
        return rows

    def find(self, file_name: str) -> list[Row]:
        return [row for row in self.page(0, 9) if row.wanted == file_name]

    def sample(self, sample_id: str) -> None:  # type: ignore[override]
        raise AssertionError("not asked for here")


def test_a_tagged_dataset_has_the_samples_of_the_tag_alone() -> None:
    source = Source([GOOD])
    remote = TaggedRemote(Dataset(), Tags(source, ttl_s=60, clock=lambda: 0.0), "good ones")  # type: ignore[arg-type]
    first = remote.dataset()
    assert [row.wanted for row in remote.kept(remote.page(0, 9))] == ["9.jpg", "8.jpg"]
    assert [row.wanted for row in remote.find("9.jpg")] == ["9.jpg"]
    assert remote.find("7.jpg") == []

    assert remote.dataset() == first
    source.listed = [GOOD._replace(mask="0x5")]
    assert remote.dataset() != first  # so that the next check lists again
    assert [row.wanted for row in remote.kept(remote.page(0, 9))] == ["9.jpg", "7.jpg"]


def test_a_tag_that_is_not_there_is_named_with_those_that_are() -> None:
    remote = TaggedRemote(Dataset(), Tags(Source([GOOD]), ttl_s=60, clock=lambda: 0.0), "bad")  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="no tag 'bad'; there are: 'good ones'"):
        remote.dataset()


@pytest.mark.parametrize(("ttl_s", "kept_s"), [(60.0, 60.0), (0.0, 2.0), (1.0, 2.0)])
def test_tags_and_mappings_are_kept_for_the_ttl_and_at_least_two_seconds(ttl_s: float, kept_s: float) -> None:
    now, source = [0.0], Source([GOOD])
    tags = Tags(source, ttl_s=ttl_s, clock=lambda: now[0])
    tags.members(tags.all()[0])
    now[0] = kept_s - 0.1
    tags.members(tags.all()[0]._replace(mask="0x1"))
    assert source.asked == ["tags", "mapping"]
    now[0] = kept_s + 0.1
    tags.members(tags.all()[0]._replace(mask="0x2"))
    assert source.asked == ["tags", "mapping"] * 2


def test_the_members_of_four_tags_are_kept() -> None:
    now, source = [0.0], Source([])
    tags = Tags(source, ttl_s=60.0, clock=lambda: now[0])
    wanted = [TagRecord(str(number), str(number), "0x1") for number in range(5)]
    for tag in wanted[:4]:
        tags.members(tag)
    now[0] = 61.0  # the mapping is no longer here
    for tag in wanted[:4]:
        tags.members(tag)
    assert source.asked == ["mapping"]
    tags.members(wanted[4])
    tags.members(wanted[0])
    assert source.asked == ["mapping"] * 2
    now[0] = 200.0
    tags.members(wanted[1])
    assert source.asked == ["mapping"] * 3


def test_a_tag_is_found_by_its_name_before_any_is_by_its_id() -> None:
    tags = Tags(Source([TagRecord("a", "b", "0x1"), TagRecord("b", "c", "0x1")]), ttl_s=60, clock=lambda: 0.0)
    found = [tags.find(word) for word in ("b", "c", "a")]
    assert [tag.id for tag in found if tag is not None] == ["a", "b", "a"]


@pytest.mark.parametrize("mask", ["0x8", "0x80", "0x100", "0x8000", "0x10001"])
def test_a_bit_of_any_place_selects_that_place(mask: str) -> None:
    mapping = b"".join(ident(number) for number in range(20))
    expected = {ident(bit) for bit in range(20) if int(mask, 16) >> bit & 1}
    assert members_of(mask, mapping) == expected


def test_a_version_moves_with_what_a_tag_holds_and_not_with_its_name() -> None:
    assert GOOD.version() == GOOD._replace(name="another").version()
    assert len({GOOD.version(), GOOD._replace(mask="0x4").version(), GOOD._replace(id="b").version()}) == 3
