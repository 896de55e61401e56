"""Figures read back out of pages: what a table says beside its row and column heads, exact where the page is.

A page writes an amount as `<data value="12.345678901">12.35</data>`; what stands for people only (print, small print)
is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Cell:
    text: str = ""
    value: str | None = None  # exact
    head: bool = False
    classes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        return self.value if self.value is not None else " ".join(self.text.split())


@dataclass
class Row:
    cells: list[Cell] = field(default_factory=list)
    classes: tuple[str, ...] = ()


@dataclass
class Table:
    """`title`: the heading before it. `heads`: of its columns."""

    title: str
    classes: tuple[str, ...] = ()
    heads: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def said(self) -> dict[str, dict[str, str]]:
        """By row head and column head."""
        found = {}
        for row in self.rows:
            if row.cells and row.cells[0].head and "print" not in row.classes:
                assert row.cells[0].said not in found, (self.title, row.cells[0].said)
                found[row.cells[0].said] = dict(zip(self.heads[1:], [cell.said for cell in row.cells[1:]], strict=True))
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self._title, self._open = "", []
        self._in_head = False
        self._cell: Cell | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        classes = tuple((given.get("class") or "").split())
        if tag in ("small", "span", "svg", "abbr", "h2", "h3", "h1"):
            self._open.append((tag, classes))
        if tag in ("h1", "h2", "h3"):
            self._title = ""
        elif tag == "table":
            self.tables.append(Table(" ".join(self._title.split()), classes))
        elif tag == "thead":
            self._in_head = True
        elif tag == "tr" and not self._in_head:
            self.tables[-1].rows.append(Row(classes=classes))
        elif tag in ("th", "td"):
            self._cell = Cell(head=tag == "th", classes=classes)
            if not self._in_head:
                self.tables[-1].rows[-1].cells.append(self._cell)
        elif tag == "data" and self._cell is not None and self._cell.value is None:
            self._cell.value = given.get("value")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            self._open.pop()
        if tag == "thead":
            self._in_head = False
        elif tag in ("th", "td"):
            if self._in_head and self._cell is not None:
                self.tables[-1].heads.append(self._cell.said)
            self._cell = None

    def handle_data(self, data: str) -> None:
        opened = {tag for tag, _ in self._open}
        if any({"unseen", "hidden", "soft", "small"} & set(classes) for _, classes in self._open) or "small" in opened:
            return
        if self._cell is not None:
            self._cell.text += data
        elif opened & {"h1", "h2", "h3"}:
            self._title += data


def tables(page: str) -> list[Table]:
    """All of them, in their order."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.tables
