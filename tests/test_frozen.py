"""Frozen classes behave as frozen dataclasses do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from typing import ClassVar

import pytest

from nir.frozen import Frozen, kept, replace


class Point(Frozen):
    x: int
    y: int = 0
    tags: list[int] = field(default_factory=list)
    label: str = field(default="", kw_only=True)
    origin: ClassVar[str] = "here"


class Named(Point):
    name: str = "p"


class Same(Point):
    pass


class Node(Frozen, eq=False, kw_only=True):
    id: int


class Leaf(Node):
    value: int


def test_fields_come_in_order_with_defaults() -> None:
    assert Named.__match_args__ == ("x", "y", "tags", "name")
    p = Named(1, 2, [3], "q", label="l")
    assert (p.x, p.y, p.tags, p.name, p.label) == (1, 2, [3], "q", "l")
    assert repr(Point(1)) == "Point(x=1, y=0, tags=[], label='')"
    assert Leaf(5, id=1).value == 5 and Point.origin == Same(1).origin == "here"
    match p:
        case Named(x, y):
            assert (x, y) == (1, 2)


def test_a_factory_makes_one_value_per_object() -> None:
    assert Point(1).tags is not Point(1).tags


@pytest.mark.parametrize("make", [lambda: Point(), lambda: Leaf(1), lambda: Point(1, z=2)])  # type: ignore[call-arg]
def test_wrong_arguments_are_type_errors(make: Callable[[], object]) -> None:
    for _ in range(2):  # the first call makes the constructor
        with pytest.raises(TypeError, match="__init__"):
            make()


def test_nothing_can_be_changed() -> None:
    p = Point(1)
    with pytest.raises(FrozenInstanceError, match="'x'"):
        p.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError, match="'x'"):
        del p.x
    with pytest.raises(FrozenInstanceError, match="'other'"):
        p.other = 2  # type: ignore[attr-defined]
    assert not hasattr(p, "__dict__")


def test_equal_by_fields_or_by_identity() -> None:
    assert Point(1, 2) == Point(1, 2) != Point(1, 3)
    assert Point(1) != Same(1)
    assert hash(Point(1, tags=())) == hash(Point(1, tags=()))  # type: ignore[arg-type]
    leaf = Leaf(1, id=0)
    assert leaf == leaf != Leaf(1, id=0)
    assert len({leaf, Leaf(1, id=0)}) == 2


def test_replaced_copied_and_pickled() -> None:
    p = Named(1, 2, [3], label="l")
    assert replace(p, y=7) == Named(1, 7, [3], label="l")
    assert copy.deepcopy(p) == p == pickle.loads(pickle.dumps(p))
    with pytest.raises(TypeError, match="nothing"):
        replace(p, nothing=1)


def test_a_kept_property_is_computed_once_for_each_object() -> None:
    asked: list[int] = []

    class Square(Frozen):
        side: int

        @kept
        def area(self) -> int:
            asked.append(self.side)
            return self.side**2

    class Named(Square):
        label: str = ""

    a = Named(3)
    assert [a.area, a.area, replace(a, side=4).area] == [9, 9, 16]
    assert asked == [3, 4]
    assert a == Named(3) and hash(a) == hash(Named(3))  # it is no field
    assert "area" not in repr(a)
    with pytest.raises(FrozenInstanceError):
        a.area = 1  # type: ignore[misc]
