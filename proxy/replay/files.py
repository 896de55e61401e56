"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """A text file (UTF-8, line breaks as written) that takes the place of `path` once the block ends well.

    It is written beside it; after an error it is gone, and what stood there before still does. What is no regular
    file (a pipe, /dev/stdout) is written to as it is.
    """
    if Path(path).exists() and not Path(path).is_file():
        with open(path, "w", encoding="utf-8", newline="") as out:
            yield out
        return
    target = Path(path).resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with draft.open("w", encoding="utf-8", newline="") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
