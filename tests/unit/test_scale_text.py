"""The figures of scale.md: that they are those of the bench, and its extrapolation that of its own slopes."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "lightlyfs/docs/scale.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and line.count("|") == 9
][2:]


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_bench_prints_each_row() -> None:
    bench = (ROOT / "tests/bench/slopes.py").read_text(encoding="utf-8")
    assert len(ROWS) >= 14
    assert [row[0] for row in ROWS if f'"{row[0]}"' not in bench] == []


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_figure_is_extrapolated_in_a_straight_line(row: list[str]) -> None:
    million, three, more, ten, hundred = map(number, row[3:])
    # cells hold three digits, so a slope is known to a hundredth of what it was taken from
    assert more == pytest.approx(max(0.0, (three - million) / 2), abs=max(0.006, three / 100))
    assert ten == pytest.approx(three + 7 * more, rel=0.02, abs=0.05)
    assert hundred == pytest.approx(three + 97 * more, rel=0.02, abs=0.6)
