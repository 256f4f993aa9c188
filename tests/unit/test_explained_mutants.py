"""What `mutants_explained.txt` says of lines of the code, which have to be there."""

from __future__ import annotations

from pathlib import Path

import mutants
import pytest


def test_every_explained_line_is_in_the_code() -> None:
    assert mutants.explanations()
    assert mutants.stale() == []


def test_an_explanation_of_no_line_is_named_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    explained = tmp_path / "explained.txt"
    explained.write_text("# why\nstore.py\n- a line of no file\n+ another\n")
    monkeypatch.setattr(mutants, "EXPLAINED", explained)

    assert mutants.main(0, [], 0, 1) == 1

    assert "no store.py has this line any more: a line of no file" in capsys.readouterr().out
