"""A trace's bytes as lines: plain, zstd or gzip, told by their first bytes; and the one error all its readers raise.

A file that was cut is an error, never a shorter trace: a compressed stream must reach its end, and an error on a last
line that no line break ends is told as a cut.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import zstandard

Progress = Callable[[int, int], None]  # bytes of the file read, bytes in all

PLAIN_BYTES, PACKED_BYTES = 1 << 18, 1 << 12  # few packed bytes at a time: zstd may swell 30,000 times
LINE_BYTES_MAX = 1 << 20
PROGRESS_BYTES = 1 << 18
COPY_AGAIN = "copy or download it again"

PACKED: dict[str, tuple[bytes, str, Callable[[], Any]]] = {
    ".zst": (b"\x28\xb5\x2f\xfd", "zstd", lambda: zstandard.ZstdDecompressor().decompressobj()),
    ".gz": (b"\x1f\x8b", "gzip", lambda: zlib.decompressobj(wbits=31)),
}
NOT_TEXT = {
    b"PAR1": ("this is a Parquet file", "convert it to CSV"),
    b"PK\x03\x04": ("this is a zip archive or a spreadsheet", "save or unpack it as CSV"),
    b"version https://git-lfs": ("this is a pointer of Git LFS, not the data", "fetch it with git lfs pull"),
    b"\xff\xfe": ("this is UTF-16, not UTF-8", "save it as UTF-8"),
    b"\xfe\xff": ("this is UTF-16, not UTF-8", "save it as UTF-8"),
}


class TraceError(Exception):
    """A trace that cannot be read. `line` counts from 1; 0 is the file as a whole. Its text is one line."""

    def __init__(self, path: str | Path, line: int, field: str, message: str, hint: str | None = None) -> None:
        self.path, self.line, self.field, self.message, self.hint = str(path), line, field, message, hint
        place = f":{line}" if line else ""
        where = f" {field}:" if field else ""
        super().__init__(f"{path}{place}:{where} {message}" + (f" ({hint})" if hint else ""))


def shown(value: object) -> str:
    """A cell or a name as it may stand in a message: short, printable, on one line."""
    text = "".join(char if char.isprintable() else "?" for char in str(value)[:61])
    return f"'{text[:57]}...'" if len(text) > 60 else f"'{text}'"


class Lines:
    """Iterates the lines, without line breaks. `count` is how many came.

    `unended`: nothing shows that the last of them is whole.
    """

    def __init__(self, path: str | Path, progress: Progress | None = None) -> None:
        self.path, self.count, self.unended = path, 0, False
        self._progress = progress

    def __iter__(self) -> Iterator[str]:
        rest, first = b"", True
        for block in self._blocks():
            rest += block
            whole, found, tail = rest.rpartition(b"\n")
            if not found:
                if len(rest) > LINE_BYTES_MAX:
                    self.fail(self.count + 1, f"the line is longer than {LINE_BYTES_MAX >> 20} MiB")
                continue
            yield from self._split(whole, first)
            rest, first = tail, False
        if rest:
            self.unended = True
            yield from self._split(rest, first)

    def fail(self, line: int, message: str, hint: str | None = None, field: str = "") -> NoReturn:
        raise TraceError(self.path, line, field, message, hint)

    def cut(self, error: TraceError) -> TraceError:
        """`error` itself, or, where it is about a last line that nothing ends, what that means."""
        if not self.unended or error.line != self.count or error.line < 2:
            return error
        message = f"the file is cut in the middle of this line, line {error.line - 1} is the last whole one"
        return TraceError(self.path, error.line, error.field, f"{message}: {error.message}", COPY_AGAIN)

    def _split(self, block: bytes, first: bool) -> Iterator[str]:
        if first:
            block = block.removeprefix(b"\xef\xbb\xbf")
            for magic, (message, hint) in NOT_TEXT.items():
                if block.startswith(magic):
                    self.fail(0, message, hint)
        try:
            lines = block.decode().split("\n")
        except UnicodeDecodeError as error:
            line = self.count + block.count(b"\n", 0, error.start) + 1
            self.fail(line, f"byte {block[error.start]:#04x} is not UTF-8", "is it a text file?")
        for line in lines:
            self.count += 1
            yield line

    def _blocks(self) -> Iterator[bytes]:
        try:
            with open(self.path, "rb") as file:
                yield from self._unpacked(file)
        except OSError as error:
            self.fail(0, error.strerror or str(error))

    def _unpacked(self, file: BinaryIO) -> Iterator[bytes]:
        head, suffix = file.read(4), Path(self.path).suffix.lower()
        file.seek(0)
        found = [kind for ending, kind in PACKED.items() if suffix == ending or head.startswith(kind[0])]
        if not found:
            yield from self._read(file, PLAIN_BYTES)
            return
        _, name, new = found[0]
        try:
            yield from self._frames(self._read(file, PACKED_BYTES), name, new)
        except (zstandard.ZstdError, zlib.error) as error:
            self.fail(self.count, f"this is no {name} data, or damaged {name} data ({error})", COPY_AGAIN)

    def _frames(self, chunks: Iterable[bytes], name: str, new: Callable[[], Any]) -> Iterator[bytes]:
        """What the frames hold, one after another."""
        stream = None
        for chunk in chunks:
            while chunk:
                stream = stream or new()
                yield stream.decompress(chunk)
                chunk = b""
                if stream.eof:
                    chunk, stream = stream.unused_data, None
        if stream is not None:
            whole = f"line {self.count} is the last whole one" if self.count else "not one whole line came"
            self.fail(self.count, f"the file is cut in the middle: its {name} data has no end, {whole}", COPY_AGAIN)

    def _read(self, file: BinaryIO, size: int) -> Iterator[bytes]:
        total, read, told = os.fstat(file.fileno()).st_size, 0, 0
        while chunk := file.read(size):
            yield chunk
            read += len(chunk)
            if self._progress and (read - told >= PROGRESS_BYTES or read >= total):
                told = read
                self._progress(read, total)
        if not read:
            self.fail(0, "the file is empty")
