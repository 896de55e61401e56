"""Records: dataclasses as frozen as any, made faster."""

from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace

import pytest

from proxy.core.records import record


@record
class Point:
    """A point."""

    x: int
    y: int = 2
    words: str = field(default="", repr=False)

    @property
    def sum(self) -> int:
        return self.x + self.y


@dataclass(frozen=True, slots=True)
class Like:
    x: int
    y: int = 2
    words: str = field(default="", repr=False)


def test_a_record_is_a_frozen_dataclass_in_every_way_but_its_cost():
    one = Point(1, words="a")
    assert (one.x, one.y, one.words, one.sum) == (1, 2, "a", 3)
    assert one == Point(1, 2, "a") != Point(1, 3, "a")
    assert hash(one) == hash(Point(1, 2, "a")) == hash(Like(1, 2, "a"))
    assert repr(one) == "Point(x=1, y=2)"
    assert asdict(one) == asdict(Like(1, words="a"))
    assert [each.name for each in fields(Point)] == ["x", "y", "words"]
    assert replace(one, x=5) == Point(5, words="a") and type(replace(one, x=5)) is Point
    assert Point.__doc__ == "A point." and not hasattr(one, "__dict__")


@pytest.mark.parametrize("name", ["x", "y", "new"])
def test_nothing_of_a_record_can_be_changed(name):
    one = Point(1)
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        setattr(one, name, 3)
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        delattr(one, name)
    assert one == Point(1)


@pytest.mark.parametrize(("args", "words"), [((), {}), ((1, 2, "", 4), {}), ((1,), {"z": 1}), ((1,), {"x": 1})])
def test_a_record_takes_its_fields_and_nothing_else(args, words):
    with pytest.raises(TypeError, match=r"Point.__init__\(\)"):
        Point(*args, **words)
