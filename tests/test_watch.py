"""What a compiled step asks of its state before each run: identities, and who else holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nir.runtime import Watch, holdings


def test_watch_sees_every_change_of_identity() -> None:
    class Owner:
        pass

    class Other:
        pass

    def changes() -> list[tuple[str, Callable[[Any, dict[Any, Any], list[Any]], None]]]:
        return [
            ("value", lambda o, d, x: d.update(a=object())),
            ("key", lambda o, d, x: d.update(c=1)),
            ("order", lambda o, d, x: d.update(a=d.pop("a"))),
            ("gone", lambda o, d, x: d.pop("b")),
            ("element", lambda o, d, x: x.__setitem__(0, object())),
            ("longer", lambda o, d, x: x.append(2)),
            ("shorter", lambda o, d, x: x.pop()),
            ("attribute", lambda o, d, x: setattr(o, "p", 5)),
            ("class", lambda o, d, x: setattr(o, "__class__", Other)),
        ]

    for name, change in changes():
        owner, mapping, items = Owner(), {"a": 1, "b": object()}, [1, 2]
        watch = Watch([owner], [vars(owner), mapping, {}], [items, []])
        assert watch.same()
        mapping["a"] = mapping["a"]
        assert watch.same(), name
        change(owner, mapping, items)
        assert not watch.same(), name


def test_watch_tells_an_element_that_moved_to_the_next_container() -> None:
    marker = object()
    first, second = [marker], [marker]
    watch = Watch([], [], [first, second])
    second.append(first.pop())
    assert not watch.same()


def test_holdings_counts_who_else_holds() -> None:
    class Cell:
        def __init__(self, data: object) -> None:
            self.data = data

    class Holder:
        def __init__(self, data: object) -> None:
            self._cell = Cell(data)

    alone, shared_cell, shared_data, none = (Holder(x) for x in ([1], [2], [3], None))
    cell, data = shared_cell._cell, shared_data._cell.data
    cells, stored, sole = holdings([alone, shared_cell, shared_data, none])
    assert cells[1] is cell and stored[2] is data and stored[3] is None
    assert sole[:3] == [True, False, False]
