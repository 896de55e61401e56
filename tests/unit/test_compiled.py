"""What mypyc is given, and what is made of what it writes. That it all works compiled is `make compiled`'s to show."""

import pytest

from tests.bench import compiled

WEAK = "*((PyObject **)((char *)self + sizeof(PyObject *) + sizeof(Thing)))"
WRITTEN = """\
static int
Thing_traverse(Thing *self, visitproc visit, void *arg)
{
    Py_VISIT(WEAK);
    return 0;
}

static void
Thing_dealloc(Thing *self)
{
    PyObject_GC_UnTrack(self);
    Thing_clear(self);
}

static PyTypeObject Thing_template_ = {
    .tp_dealloc = (destructor)Thing_dealloc,
    .tp_weaklistoffset = 24,
};
""".replace("WEAK", WEAK)


def test_every_module_that_is_compiled_is_there():
    assert all((compiled.PACKAGE.parent / name).is_file() for name in compiled.modules())


def test_a_record_is_given_as_the_dataclass_that_it_is():
    source = ("from dataclasses import field\nfrom proxy.core.records import record\n\n\n@record\nclass A:\n"
              "    x: int\n\n\n@dataclass(frozen=True, slots=True)\nclass B:\n    y: int\n")
    found = compiled.spelled(source)
    assert "@dataclass(unsafe_hash=True)\nclass A" in found and "@dataclass(frozen=True)\nclass B" in found
    assert "from dataclasses import dataclass, field" in found and "record" not in found


def test_weak_references_are_told_of_an_end_and_are_not_taken_for_its_own():
    found = compiled.mended(WRITTEN)
    assert "Py_VISIT" not in found
    assert "PyObject_GC_UnTrack(self);\n    PyObject_ClearWeakRefs((PyObject *)self);\n" in found


def test_c_that_is_not_known_is_not_guessed_at():
    with pytest.raises(ValueError, match="another C"):
        compiled.mended(WRITTEN.replace("    PyObject_GC_UnTrack(self);\n", ""))
