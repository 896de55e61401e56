"""Records: dataclasses that nobody changes."""

import importlib
import pickle
import pkgutil
from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace

import pytest

import proxy
from proxy.core import records
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


def test_a_record_is_like_a_frozen_dataclass():
    one = Point(1, words="a")
    assert (one.x, one.y, one.words, one.sum) == (1, 2, "a", 3)
    assert one == Point(1, 2, "a") != Point(1, 3, "a")
    assert hash(one) == hash(Point(1, 2, "a")) == hash(Like(1, 2, "a"))
    assert repr(one) == "Point(x=1, y=2)"
    assert asdict(one) == asdict(Like(1, words="a"))
    assert replace(one, x=5) == pickle.loads(pickle.dumps(Point(5, words="a")))
    assert Point.__doc__ == "A point." and not hasattr(one, "__dict__")


@pytest.mark.parametrize("name", ["x", "y", "words", "new"])
def test_nothing_of_a_record_can_be_changed(name):
    one = Point(1)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        setattr(one, name, 3)
    with pytest.raises(FrozenInstanceError):
        delattr(one, name)
    assert one == Point(1)


def test_every_record_of_the_gateway_is_guarded_under_test():
    for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
        if module.name.startswith(("proxy.core", "proxy.wire", "proxy.server")):
            importlib.import_module(module.name)
    assert len(records._records) > 10
    assert [made.__name__ for made in records._records if made.__setattr__ is not records._once] == []
