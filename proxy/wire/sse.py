"""Event streams (WHATWG HTML, section 9.2), split into frames and written. Bounded, incremental.

A frame is every byte from the end of the one before up to and including the blank line that
dispatches it. Joining frames gives the input back, byte for byte; so a frame can be relayed
without being understood. Two rules make the split independent of how the bytes arrive:

- blank lines before the first character of a frame belong to that frame;
- after `\\n\\r` one more byte is awaited, since `\\n` may complete the CRLF. Every other blank
  line (`\\n\\n`, `\\r\\n\\r\\n`, `\\r\\r`) ends its frame at once: nothing is held for look-ahead.
"""

from __future__ import annotations

import re

FRAME_BYTES_MAX = 1 << 19  # all that a stream keeps is at most twice this; see StreamMeter
PIECE_BYTES = 1 << 16  # what is copied at a time, so that a huge read cannot double itself

DONE_FRAME = b"data: [DONE]\n\n"
BOM = b"\xef\xbb\xbf"

_START = re.compile(rb"[^\r\n]")
_END = re.compile(rb"\n(?:\n|\r\n|\r(?=[^\n]))|\r\r")
_LINE = re.compile(rb"\r\n|\r|\n")
_INJECTS = re.compile(rb"[\r\n\0]")


class FrameTooLong(ValueError):
    """A frame is over the limit. `frames` are the whole ones that came before it in the same
    read; the splitter takes no more bytes."""

    def __init__(self, frame_bytes_max: int, frames: list[bytes]) -> None:
        super().__init__(f"an event is longer than {frame_bytes_max} bytes")
        self.frames = frames


class FrameSplitter:
    """Bytes in, whole frames out.

    Promises the same frames however the bytes are cut, linear time, and at most
    `frame_bytes_max` bytes kept (plus one piece while `feed` runs)."""

    __slots__ = ("_buffer", "_bytes_max", "_dead", "_inside", "_scan")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._bytes_max = frame_bytes_max
        self._inside = False  # past the blank lines that may precede a frame
        self._scan = 0  # nothing of interest lies before this offset
        self._dead = False

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes. Raises FrameTooLong, then and ever after."""
        if (not self._buffer and not self._dead and len(data) <= self._bytes_max
                and data[-2:] == b"\n\n" and data[0] > 13 and b"\r" not in data
                and data.find(b"\n\n") == len(data) - 2):
            return [data]  # one read, one frame: what nearly every token of every stream is
        if self._dead:
            raise FrameTooLong(self._bytes_max, [])
        frames: list[bytes] = []
        for at in range(0, len(data), PIECE_BYTES):
            self._buffer += data[at:at + PIECE_BYTES]
            self._cut(frames)
        return frames

    def remainder(self) -> bytes:
        """What came after the last whole frame; call it at the end of the stream."""
        return bytes(self._buffer)

    def _cut(self, frames: list[bytes]) -> None:
        buffer, start, scan, size = self._buffer, 0, self._scan, len(self._buffer)
        while True:
            if not self._inside:
                first = _START.search(buffer, scan)
                if first is None:
                    scan = size
                    break
                self._inside, scan = True, first.end()
            end = _END.search(buffer, scan)
            if end is None:
                scan = max(scan, size - 2)  # the longest beginning of a blank line is two bytes
                break
            if end.end() - start > self._bytes_max:
                break
            frames.append(bytes(buffer[start:end.end()]))
            self._inside, start, scan = False, end.end(), end.end()
        if size - start > self._bytes_max:
            self._fail(frames)
        if start:
            del buffer[:start]
        self._scan = scan - start

    def _fail(self, frames: list[bytes]) -> None:
        self._dead = True
        self._buffer = bytearray()
        raise FrameTooLong(self._bytes_max, frames)


def frame_data(frame: bytes) -> bytes | None:
    """The frame's data, lines joined by `\\n`; None when it has no `data` field (a comment, an
    `id`, a heartbeat)."""
    if b"data" not in frame:
        return None
    if frame[:6] == b"data: " and frame[-2:] == b"\n\n" and frame.find(b"\n") == len(frame) - 2:
        data = frame[6:-2]
        if b"\r" not in data:
            return data
    values = [line[6:] if line[:6] == b"data: " else line[5:]
              for line in _LINE.split(frame.removeprefix(BOM))
              if line[:5] == b"data:" or line == b"data"]
    return b"\n".join(values) if values else None


def data_frame(payload: bytes) -> bytes:
    """One event holding `payload`, which is one line: CR, LF and NUL would let a value write
    events of its own (CVE-2026-33128 and kin) and are refused with ValueError."""
    if _INJECTS.search(payload):
        raise ValueError("an event's data may not contain CR, LF or NUL")
    return b"data: " + payload + b"\n\n"
