"""Renames are taken back, and switched off for a while, only where they make an image unreadable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contentkit import Clock, Inline

from lightlyfs.api.models import SampleUpdate
from lightlyfs.errors import Forbidden, NotFound, NotPermitted, RequestError, ServerFault, Unreachable
from lightlyfs.staging.edits import SampleEdits

A = "a" * 24


class Client:
    """The API: the names of samples."""

    def __init__(self) -> None:
        self.names = {A: "old.jpg"}

    def update_sample(self, _: str, sample_id: str, update: SampleUpdate) -> None:
        assert isinstance(update.file_name, str)
        self.names[sample_id] = update.file_name


class Edits:
    """Edits whose images can be read as `readable(name)` says, which raises where they cannot."""

    def __init__(self, readable: Callable[[str], None]) -> None:
        self.client = Client()
        self.clock = Clock()
        self.edits = SampleEdits(
            self.client,  # type: ignore[arg-type]
            "d" * 24,
            Inline(),
            lambda sample_id: readable(self.client.names[sample_id]),
            lambda _, name: name,
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
