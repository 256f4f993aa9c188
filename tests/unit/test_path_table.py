"""The table of paths answers as a plain dict of paths would, and forgets directories that are empty."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lightlyfs.tree import PathTable

PARTS = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
STEPS = st.lists(st.tuples(st.booleans(), PATHS, st.integers(0, 9)), max_size=30)
DIRECTORIES = ["", "a", "b", "a/b", "a/b/c", "c/c/c"]


@given(STEPS)
def test_it_answers_as_a_dict_of_paths_would(steps: list[tuple[bool, str, int]]) -> None:
    table: PathTable[str] = PathTable()
    model: dict[str, str] = {}
    for number, (puts, path, time) in enumerate(steps):
        value = f"{number}"
        if puts:
            table.put(path, value, time)
            model[path] = value
        else:
            assert table.remove(path) == (model.pop(path, None) is not None)

    assert table.by_path == model
    for directory in DIRECTORIES:
        prefix = directory + "/" if directory else ""
        below = [path[len(prefix) :] for path in model if path.startswith(prefix)]
        assert set(table.within(directory)) == {model[prefix + name] for name in below if "/" not in name}
        assert table.directories_within(directory) == {
            name.partition("/")[0] for name in below if "/" in name
        }
        if directory:
            assert table.has_directory(directory) == bool(below)


def test_a_directory_has_the_time_of_its_newest_value_for_as_long_as_it_has_any() -> None:
    table: PathTable[str] = PathTable()
    table.put("d/old.jpg", "old", 10)
    table.put("d/new.jpg", "new", 20)
    table.remove("d/new.jpg")
    assert table.newest("d") == 20

    table.remove("d/old.jpg")
    table.put("d/again.jpg", "again", 5)
    assert table.newest("d") == 5
