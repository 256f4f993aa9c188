"""One answer of storage that speaks against what is known does not count; several do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import contentkit
import pytest
from contentkit import NOISE, Answer, Content, Style, sample_id

from lightlyfs.blocks import NO_OBJECT, ContentId
from lightlyfs.errors import ContentChanged, OddAnswer
from lightlyfs.fetch.answers import Doubt, Known

A = sample_id(1)
SIZE = 100_000
V1, V2, BARE, EMPTY = (
    ContentId(A, "ev1", SIZE),
    ContentId(A, "ev2", SIZE),
    ContentId(A, "", SIZE),
    ContentId(A, "", 0),
)


@pytest.mark.parametrize(
    ("hint", "before", "said", "expected"),
    [
        (None, None, V1, Doubt.NONE),
        (None, None, EMPTY, Doubt.LONG),
        (None, None, ContentId(A, "ev1", 0), Doubt.NONE),
        (SIZE, None, V1, Doubt.NONE),
        (SIZE, None, BARE, Doubt.NONE),
        (SIZE - 1, None, BARE, Doubt.SHORT),
        (SIZE + 1, None, BARE, Doubt.LONG),
        (SIZE, None, EMPTY, Doubt.LONG),
        (0, None, EMPTY, Doubt.NONE),
        (SIZE, None, ContentId(A, "ev1", 0), Doubt.LONG),
        (SIZE + 1, None, V1, Doubt.SHORT),
        (SIZE - 1, None, V1, Doubt.SHORT),
        (SIZE, V1, V1, Doubt.NONE),
        (SIZE, V1, V2, Doubt.SHORT),
        (SIZE, V1, BARE, Doubt.LONG),
        (SIZE, V1, V1._replace(size=SIZE + 1), Doubt.LONG),
        (SIZE, V1, EMPTY, Doubt.LONG),
        (SIZE, EMPTY, V1, Doubt.SHORT),
        (0, ContentId(A, NO_OBJECT, 0), V1, Doubt.SHORT),
        (None, ContentId(A, NO_OBJECT, 0), V1, Doubt.NONE),
    ],
)
def test_what_speaks_against_what_is_known(
    hint: int | None, before: ContentId | None, said: ContentId, expected: Doubt
) -> None:
    assert Known(hint, before).doubt(said, trust_hint=True) is expected


def test_a_hint_that_is_not_trusted_is_no_reason_to_doubt_a_version() -> None:
    assert Known(SIZE + 1).doubt(V1, trust_hint=False) is Doubt.NONE
    assert Known(SIZE + 1).doubt(BARE, trust_hint=False) is Doubt.SHORT
    assert Known(SIZE + 1).doubt(EMPTY, trust_hint=False) is Doubt.LONG


@pytest.fixture
def content(tmp_path: Path) -> Iterator[Content]:
    subject = Content(tmp_path)
    yield subject
    subject.cache.close()


def nothing(_data: bytes, _start: int, _end: int) -> Answer:
    return 200, {"content-length": "0"}, b""


def answers(content: Content, *styles: Style) -> None:
    """Answer in these styles, and from then on as it should be."""
    left = list(styles)
    content.storage.style = lambda *args: (left.pop(0) if left else contentkit.honest)(*args)


@pytest.mark.parametrize("times", [1, 2, 5])
def test_an_empty_answer_that_passes_is_no_empty_file(content: Content, times: int) -> None:
    content.storage.put(A, NOISE[:SIZE])
    answers(content, *[nothing] * times)

    found = content.identify(A, SIZE)

    assert found.size == SIZE
    assert content.read(found, 0, SIZE) == NOISE[:SIZE]
    assert content.facts == [found]
    assert content.certain == [True]


def test_an_empty_answer_that_stays_is_believed_and_asked_for_again(content: Content) -> None:
    content.storage.put(A, NOISE[:SIZE])
    content.storage.style = nothing

    found = content.identify(A, SIZE)

    assert found == EMPTY
    assert content.certain == [False]
    assert 1_005 < content.clock.now < 1_010
    # the next open costs no wait, and sees when storage is well again
    assert content.identify(A, 0, known=found) == EMPTY
    assert content.clock.now < 1_010
    content.storage.style = contentkit.honest
    assert content.identify(A, 0, known=found).size == SIZE


def test_another_version_counts_when_three_answers_name_it(content: Content) -> None:
    content.storage.put(A, NOISE[:SIZE], "v1")
    known = content.identify(A, SIZE)
    content.storage.put(A, NOISE[: SIZE - 1], "v2")
    content.storage.requests.clear()

    found = content.identify(A, SIZE, known=known)

    assert (found.etag, found.size) == ("ev2", SIZE - 1)
    assert len(content.storage.requests) == 3
    assert content.clock.now == 1_000


def test_hints_that_are_wrong_cost_requests_for_three_files_only(content: Content) -> None:
    for number in range(10):
        content.storage.put(sample_id(number), NOISE[:SIZE], f"v{number}")

    for number in range(10):
        assert content.identify(sample_id(number), SIZE + 1).size == SIZE

    assert len(content.storage.requests) == 3 * 3 + 7


def test_a_version_that_passes_under_a_reader_is_no_change(content: Content) -> None:
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))
    content.storage.put(A, NOISE, "v2")
    asked = len(content.storage.requests)

    def well_again(data: bytes, start: int, end: int) -> Answer:
        if len(content.storage.requests) > asked + 1:
            content.storage.put(A, NOISE, "v1")
        return contentkit.honest(data, start, end)

    content.storage.style = well_again
    assert content.read(found, 5 << 20, 100) == NOISE[5 << 20 : (5 << 20) + 100]

    content.storage.put(A, NOISE, "v3")
    content.storage.style = contentkit.honest
    with pytest.raises(ContentChanged):
        content.read(found, 3 << 20, 100)


@pytest.mark.parametrize("pause_s", [0.0, 2.0, 5.9])
def test_an_object_without_version_that_gets_shorter_twice_is_the_last_one(
    content: Content, pause_s: float
) -> None:
    """Each of them is doubted: a proxy that cuts answers looks the same."""
    content.storage.put(A, NOISE[:SIZE])
    known = content.identify(A, SIZE)
    content.cache.drop(known)
    content.storage.put(A, NOISE[1:SIZE])
    replaced_at = content.clock.now + pause_s

    def once_more(data: bytes, start: int, end: int) -> Answer:
        if content.clock.now >= replaced_at and len(content.storage.requests) > 2:
            content.storage.put(A, NOISE[10:SIZE])
        return contentkit.honest(data, start, end)

    content.storage.style = once_more
    found = content.identify(A, SIZE, known=known)

    assert found.size == SIZE - 10
    assert content.read(found, 0, SIZE) == NOISE[10:SIZE]


def test_answers_that_never_agree_are_believed_none_and_end_soon(content: Content) -> None:
    content.storage.put(A, NOISE[:SIZE])
    known = content.identify(A, SIZE)
    content.cache.drop(known)
    content.storage.style = lambda data, start, end: contentkit.honest(
        data[len(content.storage.requests) :], start, end
    )

    with pytest.raises(OddAnswer):
        content.identify(A, SIZE, known=known)

    assert content.clock.now < 1_010
    assert content.facts == [known]
