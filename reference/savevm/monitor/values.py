"""The JSON of a monitor's client: values one behind the other, in whatever pieces they come."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

__all__ = ["JsonError", "Values", "parse"]

# Bytes of one value and of one without brackets, and how deep it may be nested.
SIZE_MAX: Final = 1 << 20
WORD_MAX: Final = 4096
DEPTH_MAX: Final = 128

_SPACE: Final = b" \t\r\n"
_STRUCTURE: Final = re.compile(rb"[\[\]{}\"']")
_BEHIND_WORD: Final = re.compile(rb"[\s\[\]{}\"',:]")
_IN_STRING: Final = {quote: re.compile(rb"[\x00-\x1f\\" + quote + rb"]") for quote in (b'"', b"'")}
_STRINGS: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'((?:[^'\\]|\\.)*)'")
_REQUOTED: Final = {"\\'": "'", '"': '\\"'}


class JsonError(ValueError):
    """What came is not JSON; the text says why."""

    def __init__(self, why: str) -> None:
        super().__init__(f"JSON parse error, {why}")


class Values:
    """Takes bytes as they come and gives the values in them, each as soon as it is complete.

    Where something is wrong, a ``JsonError`` comes in the place of a value, and what belongs to it
    is passed over.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._seen = 0  # what of it has been looked at
        self._depth = 0
        self._quote = b""
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[object]:
        """The values that ``data`` completes."""
        self._text += data
        while True:
            if self._skipping:
                line_end = self._text.find(b"\n")
                self._skipping = line_end < 0
                self._reset(len(self._text) if line_end < 0 else line_end + 1)
            if not self._depth and not self._quote:
                self._reset(len(self._text) - len(self._text.lstrip(_SPACE)))
            try:
                end = self._end()
                if not end:
                    most = SIZE_MAX if self._depth or self._quote else WORD_MAX
                    if len(self._text) > most:
                        raise JsonError(f"more than {most} bytes")
                    return
            except JsonError as error:
                self._skipping = True
                yield error
                continue
            text = bytes(self._text[:end])
            self._reset(end)
            try:
                yield parse(text)
            except JsonError as error:
                yield error

    def _reset(self, end: int) -> None:
        """Begin anew behind ``end``."""
        del self._text[:end]
        self._seen = 0
        self._depth = 0
        self._quote = b""

    def _end(self) -> int:
        """Where the value ends that the text begins with; 0: not in what has come."""
        text = self._text
        while self._seen < len(text):
            if self._quote:
                found = _IN_STRING[self._quote].search(text, self._seen)
                if found is None:
                    self._seen = len(text)
                    return 0
                if found[0] == b"\\":
                    if found.end() == len(text):
                        self._seen = found.start()
                        return 0
                    self._seen = found.end() + 1
                    continue
                self._seen = found.end()
                if found[0] != self._quote:
                    # What follows up to the line's end is no longer what it seems to be.
                    del text[: found.start()]
                    raise JsonError("control character in string")
                self._quote = b""
            else:
                found = _STRUCTURE.search(text, self._seen)
                if not self._depth and (found is None or found.start() > 0):
                    behind = _BEHIND_WORD.search(text, 1)
                    return behind.start() if behind is not None else 0
                if found is None:
                    self._seen = len(text)
                    return 0
                self._seen = found.end()
                if found[0] in (b'"', b"'"):
                    self._quote = bytes(found[0])
                    continue
                self._depth += 1 if found[0] in (b"[", b"{") else -1
                if self._depth > DEPTH_MAX:
                    raise JsonError(f"nested deeper than {DEPTH_MAX}")
            if self._depth <= 0:
                return self._seen
        return 0


def parse(text: bytes) -> object:
    """The value that ``text`` is.  As QEMU's, strings may have single quotes; raises ``JsonError``."""
    try:
        string = text.decode()
    except UnicodeDecodeError:
        raise JsonError("invalid UTF-8") from None
    if "'" in string:
        string = _STRINGS.sub(_requoted, string)
    try:
        value = json.loads(
            string, parse_constant=_keyword, parse_float=_number, object_pairs_hook=_unique
        )
        if "\\u" in string:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        why = error.msg[:1].lower() + error.msg[1:]
        raise JsonError(f"{why} at {error.pos}") from None
    except UnicodeEncodeError:
        raise JsonError("half of a surrogate pair in string") from None
    except JsonError:
        raise
    except ValueError:
        raise JsonError("number out of range") from None
    return value


def _requoted(found: "re.Match[str]") -> str:
    if found[1] is None:
        return found[0]
    return '"' + re.sub(r"\\.|\"", lambda part: _REQUOTED.get(part[0], part[0]), found[1]) + '"'


def _keyword(word: str) -> NoReturn:
    raise JsonError(f"invalid keyword '{word}'")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonError(f"number {text[:20]} out of range")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise JsonError("duplicate key")
    return members
