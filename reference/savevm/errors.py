"""What can be wrong with a stream."""

import errno
from typing import Final

from savevm_spec.rules import rules

__all__ = [
    "LimitError",
    "MalformedError",
    "StreamError",
    "TruncatedError",
    "UnsupportedError",
    "stream_error",
]


class StreamError(Exception):
    """A stream breaks a rule.

    Attributes: ``rule`` (id in ``rules.toml``), ``offset`` (bytes from the start of the stream to
    what the rule's ``at`` names), ``section`` (idstr of the section being read, or None),
    ``detail`` (what was found, one line) and ``errno`` (a number of the class that the rule gives).
    """

    def __init__(self, rule: str, offset: int, section: str | None, detail: str) -> None:
        self.rule: Final = rule
        self.offset: Final = offset
        self.section: Final = section
        self.detail: Final = detail
        self.errno_name: Final = rules()[rule].errno or "EINVAL"
        self.errno: Final = int(getattr(errno, self.errno_name))
        where = f"offset {offset}" + (f", section {section!r}" if section is not None else "")
        super().__init__(f"{where}: {detail} [{rule}]")


class MalformedError(StreamError):
    """The bytes contradict the format (EINVAL, ENOENT, ERANGE)."""


class UnsupportedError(StreamError):
    """The bytes may be right, but not for this reader (ENOTSUP)."""


class TruncatedError(StreamError):
    """The input ends before the stream does (EIO)."""


class LimitError(StreamError):
    """The stream asks for more than the reader's bound (EFBIG)."""


_CLASSES: Final = {"ENOTSUP": UnsupportedError, "EIO": TruncatedError, "EFBIG": LimitError}


def stream_error(rule: str, offset: int, section: str | None, detail: str) -> StreamError:
    """A ``StreamError`` of the subclass that belongs to the rule's errno."""
    kind = _CLASSES.get(rules()[rule].errno or "", MalformedError)
    return kind(rule, offset, section, detail)
