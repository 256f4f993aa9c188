"""Renames are taken back, and switched off for a while, only where they make an image unreadable."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
from contentkit import Clock, Inline

from lightlyfs.api.models import Sample, SampleUpdate
from lightlyfs.api.retry import Retrier, RetryPolicy
from lightlyfs.errors import (
    FileExists,
    Forbidden,
    NotFound,
    NotPermitted,
    RequestError,
    ServerFault,
    Unreachable,
)
from lightlyfs.staging.edits import SampleEdits
from lightlyfs.staging.upload_steps import UploadedSamples

A, B = "a" * 24, "b" * 24


class Client:
    """The API: the names of samples."""

    def __init__(self) -> None:
        self.names = {A: "old.jpg"}
        # what lists show in place of that
        self.listed: dict[str, str] = {}
        self.lists = True
        self.asked = 0

    def update_sample(self, _: str, sample_id: str, update: SampleUpdate) -> None:
        assert isinstance(update.file_name, str)
        self.names[sample_id] = update.file_name

    def list_samples_partial(self, _: str, *, file_name: str, **__: object) -> list[Sample]:
        self.asked += 1
        if not self.lists:
            raise NotFound("no such endpoint", status=404)
        listed = self.names | self.listed
        return [Sample(id=one, file_name=name) for one, name in listed.items() if name == file_name]

    def get_sample(self, _: str, sample_id: str) -> Sample:
        return Sample(id=sample_id, file_name=self.names[sample_id])


class Edits:
    """Edits whose images can be read as `readable(name)` says, which raises where they cannot."""

    def __init__(self, readable: Callable[[str], None], *, sole_writer: bool = False) -> None:
        self.client = Client()
        self.clock = Clock()
        policy = RetryPolicy()
        samples = UploadedSamples(self.client, "d" * 24, Retrier(policy), policy, lambda _: None)  # type: ignore[arg-type]
        self.edits = SampleEdits(
            samples,
            Inline(),
            lambda sample_id: readable(self.client.names[sample_id]),
            sole_writer=sole_writer,
            clock=self.clock,
        )

    def rename(self, new: str = "new.jpg") -> None:
        self.edits.rename(A, self.client.names[A], new, has_object=True).result()


def unless(name: str, error: RequestError) -> Callable[[str], None]:
    def read(current: str) -> None:
        if current != name:
            raise error

    return read


@pytest.mark.parametrize("error", [NotFound("no such key", status=404), Forbidden("no", status=403)])
def test_an_image_that_can_be_read_under_its_old_name_alone_ends_renames_for_ten_minutes(
    error: RequestError,
) -> None:
    subject = Edits(unless("old.jpg", error))
    with pytest.raises(NotPermitted, match="another name"):
        subject.rename()
    assert subject.client.names[A] == "old.jpg"
    assert "old.jpg unreadable" in subject.edits.renames_are_off()

    subject.clock.sleep(599)
    with pytest.raises(NotPermitted, match="not renamed"):
        subject.rename()
    subject.clock.sleep(2)
    assert subject.edits.renames_are_off() == ""
    with pytest.raises(NotPermitted, match="another name"):
        subject.rename()


@pytest.mark.parametrize(
    ("name", "finished"),
    [("old.jpg", "new.jpg"), ("a.jpg", "a.jpg"), ("new.jpg", "new.jpg"), ("z.jpg", "z.jpg")],
)
def test_a_rename_that_a_crash_cut_off_is_finished_unless_the_name_moved_since(
    name: str, finished: str
) -> None:
    subject = Edits(lambda _: None)
    subject.client.names[A] = name
    moved = name not in ("old.jpg", "new.jpg")
    with pytest.raises(FileExists, match=f"to {name}") if moved else nullcontext():
        subject.edits.finish_rename(A, "old.jpg", "new.jpg", has_object=True, stands=lambda: True)
    assert subject.client.names == {A: finished}


def test_an_image_that_cannot_be_read_at_all_says_nothing_of_renames() -> None:
    subject = Edits(unless("nothing", NotFound("no such key", status=404)))
    with pytest.raises(ServerFault, match="under any name"):
        subject.rename()
    assert subject.client.names[A] == "old.jpg"
    assert subject.edits.renames_are_off() == ""


def test_a_network_that_fails_says_nothing_of_renames() -> None:
    subject = Edits(unless("old.jpg", Unreachable("down")))
    with pytest.raises(Unreachable):
        subject.rename()
    assert subject.client.names[A] == "old.jpg"
    assert subject.edits.renames_are_off() == ""


def test_a_name_that_another_sample_got_meanwhile_is_not_given_twice() -> None:
    subject = Edits(lambda _: None)
    subject.client.names[B] = "new.jpg"

    with pytest.raises(FileExists, match=r"new\.jpg"):
        subject.rename()

    assert subject.client.names == {A: "old.jpg", B: "new.jpg"}


def test_a_name_that_another_sample_left_is_free_though_a_list_lags() -> None:
    subject = Edits(lambda _: None)
    subject.client.names[B] = "moved.jpg"
    subject.client.listed[B] = "new.jpg"

    subject.rename()

    assert subject.client.names == {A: "new.jpg", B: "moved.jpg"}


def test_a_sole_writer_asks_for_no_name() -> None:
    subject = Edits(lambda _: None, sole_writer=True)
    subject.client.names[B] = "new.jpg"

    subject.rename()

    assert subject.client.asked == 0
    assert subject.client.names[A] == "new.jpg"


def test_a_server_that_has_no_list_by_name_is_taken_to_have_no_other() -> None:
    """Servers before August 2022."""
    subject = Edits(lambda _: None)
    subject.client.lists = False

    subject.rename()

    assert subject.client.names[A] == "new.jpg"


@pytest.mark.parametrize("sent", [False, True])
def test_a_rename_that_is_finished_later_is_taken_back_where_it_loses_the_image(sent: bool) -> None:
    """On a bucket of one's own; whether or not the server had heard of it before the mount was killed."""
    made = Edits(unless("old.jpg", NotFound("no such key", status=404)))
    made.client.names[A] = "new.jpg" if sent else "old.jpg"

    with pytest.raises(NotPermitted):
        made.edits.finish_rename(A, "old.jpg", "new.jpg", has_object=True, stands=lambda: True)

    assert made.client.names[A] == "old.jpg"
    assert "unreadable" in made.edits.renames_are_off()


def test_a_rename_that_is_finished_later_gives_no_name_twice() -> None:
    made = Edits(lambda _: None)
    made.client.names[B] = "new.jpg"

    with pytest.raises(FileExists):
        made.edits.finish_rename(A, "old.jpg", "new.jpg", has_object=True, stands=lambda: True)

    assert made.client.names == {A: "old.jpg", B: "new.jpg"}
