"""The stream as a whole, and what the grammar is used for: ``parse``, ``build``, ``transcript``.

A stream of version 3 is header, perhaps a configuration, records until EOF, and perhaps a
VMDESCRIPTION.  Origin: qemu_loadvm_state, qemu_loadvm_state_main.
"""

import io
from dataclasses import dataclass
from typing import Any

from construct import (
    GreedyBytes,
    Int8ub,
    NoneOf,
    OneOf,
    Pass,
    RepeatUntil,
    Struct,
    Switch,
    Tell,
    this,
)

from . import command, configuration, header, legacy, section, vmdesc
from .combinators import Announced, Noted, Reported, Ruled, Whole
from .constants import (
    COMMAND,
    CONFIGURATION,
    EOF,
    RAM_IDSTR,
    SECTION_FOOTER,
    SECTION_FULL,
    SECTION_NAMES,
    SECTION_START,
    VERSION_1,
    VERSION_2,
    VERSION_3,
    VMDESCRIPTION,
)
from .dialects import dialect
from .errors import GrammarError
from .reading import Finding, Reading, keep, reading


def _misplaced(rule: str, byte: int, subcon: Any) -> Ruled:
    return Ruled(rule, NoneOf(subcon, [byte]))


Type = _misplaced("configuration.misplaced", CONFIGURATION, Int8ub)
Type = _misplaced("vmdesc.misplaced", VMDESCRIPTION, Type)
Type = _misplaced("footer.unexpected", SECTION_FOOTER, Type)
Type = Ruled("section.type", OneOf(Type, section.RECORD_TYPES))
"""The u8 type of a record; nothing marks where a record ends, so a wrong one ends reading."""

Record = Struct(
    "offset" / Tell,
    "type" / Whole("stream.truncated", Type),
    "content"
    / Switch(
        this.type,
        {EOF: Pass, COMMAND: command.Command, **dict.fromkeys(SECTION_NAMES, section.Section)},
    ),
)


def _record(record: Any) -> dict[str, Any]:
    if record.type == EOF:
        return {"record": "eof", "offset": record.offset}
    tell = command.transcript if record.type == COMMAND else section.transcript
    return tell(record)


def _is_last(record: Any, *_: Any) -> bool:
    if record.type == EOF:
        return True
    return record.type != COMMAND and bool(record.content.schema.kind == "undelimited")


def _find_description(version3: Any) -> None:
    state = reading(version3)
    state.description = vmdesc.discover(version3._io.getvalue())
    if state.description is not None:
        state.ram.page_size = state.description.page_size


Version3 = Struct(
    Noted(_find_description),
    "configuration"
    / Announced(CONFIGURATION, configuration.Configuration * keep(configuration.transcript)),
    "records" / RepeatUntil(_is_last, Record * keep(_record)),
    "vmdescription" / Announced(VMDESCRIPTION, vmdesc.VmDescription * keep(vmdesc.transcript)),
    "trailing" / Reported("stream.trailing-data", GreedyBytes, lambda trailing: not trailing),
)

Grammar = Struct(
    "header" / header.Header * keep(header.transcript),
    "body"
    / Switch(
        this.header.version,
        {VERSION_1: legacy.Version1, VERSION_2: legacy.Version2, VERSION_3: Version3},
    ),
)
"""Every stream, of any version."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What ``parse`` found.

    ``value`` holds the Containers of ``Grammar``, or None if ``error`` ended reading; ``reading``
    has what was complete before it, and the memory of the guest.
    """

    value: Any
    reading: Reading
    error: GrammarError | None

    @property
    def findings(self) -> list[Finding]:
        """Broken rules that did not end reading, in the order of the stream."""
        return self.reading.findings


def parse(data: bytes) -> Stream:
    """Read a whole stream.  Whatever the bytes are, nothing is raised: see ``Stream.error``."""
    state = Reading()
    try:
        return Stream(Grammar.parse_stream(io.BytesIO(data), reading=state), state, None)
    except GrammarError as error:
        error.section = state.section
        return Stream(None, state, error)


def build(stream: Stream) -> bytes:
    """The bytes of a stream, from its values; raises the error of one that could not be read."""
    if stream.error is not None:
        raise stream.error
    data: bytes = Grammar.build(stream.value)
    return data


def transcript(stream: Stream) -> dict[str, Any]:
    """What the stream says, as a dict that can be written as JSON.

    Offsets are absolute; digests are SHA-256 in lower-case hex.  ``page_size`` is the target page
    size in bytes, and None where nothing states or shows it; so is ``footers``.
    """
    state, error = stream.reading, stream.error
    records = [tell(record) for tell, record in state.done]
    of_kind = {record["record"]: record for record in reversed(records)}
    version = of_kind["header"]["version"] if records else 0
    starts = (SECTION_NAMES[SECTION_START], SECTION_NAMES[SECTION_FULL])
    ram_versions = (
        record["version_id"]
        for record in records
        if record["record"] in starts and record["idstr"] == RAM_IDSTR
    )
    return {
        "dialect": dialect(
            version,
            configuration="configuration" in of_kind,
            vmdescription="vmdescription" in of_kind,
            ram_version=next(ram_versions, 0),
        ),
        "version": version,
        "page_size": state.ram.page_size,
        "footers": state.footers,
        "records": records,
        "ram": [
            {"idstr": block, "used_length": length, "digest": state.ram.digest(block)}
            for block, length in state.ram.blocks.items()
        ],
        "findings": [finding._asdict() for finding in state.findings],
        "error": error
        and {
            "rule": error.rule,
            "offset": error.offset,
            "section": error.section,
            "errno": error.errno,
        },
    }
