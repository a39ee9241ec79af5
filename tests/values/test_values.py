from __future__ import annotations

from typing import ClassVar

import pytest

from cfstools.values import Value


class Point(Value):
    kind: ClassVar[str] = "point"
    x: int
    y: int = 5


class Named(Point):
    name: str = "here"

    def _check(self) -> None:
        if not self.name:
            raise ValueError("no name")


def test_fields_and_defaults() -> None:
    assert (Point(x=1).x, Point(x=1).y, Point(y=3, x=2).y) == (1, 5, 3)
    named = Named(x=1)
    assert (named.x, named.y, named.name, named.kind) == (1, 5, "here", "point")
    assert Named._fields == ("x", "y", "name")
    assert repr(named) == "Named(x=1, y=5, name='here')"


@pytest.mark.parametrize(
    ("given", "what"),
    [({}, "Point needs x"), ({"x": 1, "z": 2}, "Point has no field z"), ({"z": 2}, "Point needs x, z")],
)
def test_other_fields_are_refused(given: dict[str, int], what: str) -> None:
    with pytest.raises(TypeError, match=f"^{what}$"):
        Point(**given)


def test_equality_is_that_of_class_and_fields() -> None:
    assert Point(x=1) == Point(x=1, y=5)
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != Named(x=1)
    assert Point(x=1) != (1, 5)
    assert len({Point(x=1), Point(y=5, x=1), Point(x=2)}) == 2


def test_values_stay_as_they_are() -> None:
    point = Point(x=1)
    with pytest.raises(AttributeError, match=r"Point\.x cannot be changed"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Point\.x cannot be removed"):
        del point.x
    other = Named(x=1)._replace(name="there")
    assert (other.x, other.name) == (1, "there")


def test_a_class_may_refuse_values() -> None:
    with pytest.raises(ValueError, match="no name"):
        Named(x=1, name="")
    with pytest.raises(ValueError, match="no name"):
        Named(x=1)._replace(name="")
