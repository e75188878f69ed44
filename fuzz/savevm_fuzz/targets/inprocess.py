"""The reference and the grammar, each in this process, each held against the other."""

import zlib
from collections.abc import Sequence
from random import Random
from typing import Any, Final

import savevm
from savevm.stream.events import Event, Finding, PageRun
from savevm.stream.reader import Reader
from savevm.transcript import rebuild, transcribe
from savevm.vmdesc import Description, find_description
from savevm_conformance import __version__
from savevm_conformance.adapters import ours, reference
from savevm_conformance.protocol import CLASSES, SAYS
from savevm_fuzz import oracle
from savevm_fuzz.targets.limits import guarded
from savevm_spec.rules import rules

__all__ = ["Grammar", "Reference"]

# Pieces that a stream is cut into, up to how many bytes also into single bytes, and of how many
# streams one is, if there is no time for all.
_PIECES: Final = 6
_SINGLE: Final = 256
_CUT: Final = 4


class _Here:
    """What both have in common."""

    says: Final = SAYS

    def __init__(self, *, seconds: float, memory: int) -> None:
        self.seconds: Final = seconds
        self.memory: Final = memory

    def close(self) -> None:
        """There is nothing to end."""


class Grammar(_Here):
    """``savevm_spec``, held against the reference."""

    name: Final = "spec"
    version: Final = __version__

    def run(self, data: bytes) -> dict[str, Any]:
        """See `Target`."""
        return guarded(oracle.predict, data, self.seconds, self.memory)

    def predict(self, data: bytes) -> dict[str, Any]:
        """See `Target`."""
        return guarded(_verdict, data, self.seconds, self.memory)


class Reference(_Here):
    """``savevm``, held against the grammar, and against itself with the input in pieces."""

    name: Final = "reference"
    version: Final = savevm.__version__
    roles: Final = ("reader", "writer")
    features: Final = frozenset(ours.FEATURES)

    def run(self, data: bytes) -> dict[str, Any]:
        """See `Target`."""

        def both(data: bytes) -> dict[str, Any]:
            quick = _quick(data, cut=True)
            return quick if quick["outcome"] == "error" else _verdict(data)

        return guarded(both, data, self.seconds, self.memory)

    def predict(self, data: bytes) -> dict[str, Any]:
        """See `Target`."""
        return guarded(oracle.predict, data, self.seconds, self.memory)

    def write(self, message: dict[str, Any]) -> dict[str, Any]:
        """See `Writer`."""
        return guarded(lambda _: reference.writer(message), b"", self.seconds, self.memory)

    def quick(self, data: bytes) -> dict[str, Any]:
        """See `Quick`; the outcome is error for what cannot be, whatever the stream is."""

        def sometimes(data: bytes) -> dict[str, Any]:
            return _quick(data, cut=zlib.crc32(data) % _CUT == 0)

        return guarded(sometimes, data, self.seconds, self.memory)


def _verdict(data: bytes) -> dict[str, Any]:
    return ours.verdict(transcribe(data), data, rebuild)


def _quick(data: bytes, *, cut: bool) -> dict[str, Any]:
    description = find_description(data)
    whole, events = _read([data], description)
    error, findings = whole.error, [e for e in events if type(e) is Finding]
    for what, kind in [(error, "reject")] * (error is not None) + [(f, "report") for f in findings]:
        assert what is not None
        if rules()[what.rule].violation != kind:
            return {"outcome": "error", "why": f"{what.rule} is no rule to {kind}"}
        if not 0 <= what.offset <= len(data):
            why = f"{what.rule} at {what.offset}, of {len(data)} bytes"
            return {"outcome": "error", "why": why}
    expected = _seen(whole, events)
    again = _seen(*_read(_pieces(data), description)) if cut else {}
    for key, got in again.items():
        if got != expected[key]:
            why = f"{key} in pieces: {got}, not {expected[key]}"
            return {"outcome": "error", "why": why}
    reply: dict[str, Any] = {
        "outcome": "accept",
        "dialect": whole.dialect,
        "findings": expected["findings"],
        "kinds": sorted({type(event).__name__ for event in events}),
    }
    if error is None:
        return reply
    kind = CLASSES[error.errno_name]
    return reply | {"outcome": "reject", "class": kind, **expected["error"]}


def _read(pieces: Sequence[bytes], description: Description | None) -> tuple[Reader, list[Event]]:
    reader = Reader(description=description)
    events: list[Event] = []
    for piece in pieces:
        events += reader.feed(piece)
    events += reader.finish()
    return reader, events


def _pieces(data: bytes) -> list[bytes]:
    """The stream cut somewhere, always the same for the same stream."""
    seed = zlib.crc32(data)
    if len(data) <= _SINGLE and seed & 64:
        return [data[at : at + 1] for at in range(len(data))]
    random = Random(seed)
    cuts = sorted(random.randint(0, len(data)) for _ in range(_PIECES - 1))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _seen(reader: Reader, events: Sequence[Event]) -> dict[str, Any]:
    """What is the same however the input comes; runs of pages end where a piece does."""
    error = reader.error
    return {
        "error": error and {"rule": error.rule, "offset": error.offset, "section": error.section},
        "findings": [_told(event) for event in events if type(event) is Finding],
        "events": [(type(e).__name__, e.offset) for e in events if type(e) is not PageRun],
        "dialect": reader.dialect,
        "page size": reader.page_size,
        "blocks": dict(reader.blocks),
        "trailing": reader.trailing,
    }


def _told(finding: Finding) -> dict[str, Any]:
    return {"rule": finding.rule, "offset": finding.offset, "section": finding.section}
