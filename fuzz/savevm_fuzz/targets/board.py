"""What the rules make of a stream that is loaded into a machine: the board "spike" of a QEMU release.

Only what binds everybody counts: not rules that are a SHOULD, nor those on the VMDESCRIPTION, which
who knows the machine has no need to read.  The state of a device is good if it can be decoded; what
few values are refused is said here.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from savevm.errors import StreamError, stream_error
from savevm.ram import RamBlock
from savevm.savable import Ram
from savevm.stream.events import (
    Command,
    Configuration,
    Device,
    Eof,
    Event,
    Header,
    RamBlocks,
    Section,
)
from savevm.stream.handlers import Handlers
from savevm.stream.reader import Reader
from savevm_conformance.protocol import CLASSES
from savevm_spec.constants import (
    CMD_ENABLE_COLO,
    CMD_OPEN_RETURN_PATH,
    CMD_PACKAGED,
    CMD_POSTCOPY_ADVISE,
    CMD_POSTCOPY_LISTEN,
    CMD_POSTCOPY_RAM_DISCARD,
    CMD_POSTCOPY_RUN,
    CMD_SWITCHOVER_START,
    RAM_IDSTR,
    RAM_VERSION,
    SECTION_END,
    SECTION_PART,
    VERSION_3,
)
from savevm_spec.devices import layouts
from savevm_spec.rules import rules

__all__ = ["RELEASES", "ZEROS", "Verdict", "verdict"]

RELEASES: Final = ("5.2", "7.2", "10.0", "11.1")
# Bytes of zeros that are looked at behind a stream which has no end.
ZEROS: Final = 1 << 16
_MACHINE: Final = "spike"
_PAGE: Final = 4096
_OPEN: Final[dict[str, Any]] = {"outcome": "skip"}
# What a process is not the same after, or what depends on where the stream comes from.
_LASTING: Final = (
    CMD_OPEN_RETURN_PATH,
    CMD_POSTCOPY_ADVISE,
    CMD_POSTCOPY_LISTEN,
    CMD_POSTCOPY_RUN,
    CMD_POSTCOPY_RAM_DISCARD,
    CMD_PACKAGED,
    CMD_ENABLE_COLO,
)
# QEMU knows the section ids of earlier loads, and the block of their last page.
_REMEMBERED: Final = ("section.id.unknown", "ram.page.continue-needs-block")
# What nobody does who was not asked to.
_UNASKED: Final = (CMD_POSTCOPY_LISTEN, CMD_POSTCOPY_RUN, CMD_ENABLE_COLO)
# Live sections that QEMU has besides RAM, whose bodies are about disks.
_DISKS: Final = ("block", "dirty-bitmap")
_OLDEST: Final = {"timer": 1}
_RUNSTATES: Final = frozenset(
    {
        *("colo", "debug", "finish-migrate", "guest-panicked", "inmigrate", "internal-error"),
        *("io-error", "paused", "postmigrate", "preconfig", "prelaunch", "restore-vm", "running"),
        *("save-vm", "shutdown", "suspended", "watchdog"),
    }
)
_MXL: Final = 2


class Verdict(NamedTuple):
    """``reply`` is one of a loader, with the outcome "skip" where the rules leave it open.

    ``lasting``: it changes more in the process that loads it than the next load sets right, or is
    another thing for a process that sees zeros where the stream has its end.
    """

    reply: dict[str, Any]
    lasting: bool


class _Undecided(Exception):
    """The rules do not say what becomes of the rest."""


def verdict(
    data: bytes, release: str, blocks: Mapping[str, bytes], *, endless: bool = False
) -> Verdict:
    """What a machine of ``release`` whose RAM blocks have these contents makes of ``data``.

    ``endless``: there are zeros behind it, and no end.
    """
    ram = [RamBlock(name, len(content)) for name, content in blocks.items()]
    for block in ram:
        block.write(0, blocks[block.name])
    checks = _Checks(release, whole := Ram(list(ram)))
    reader = Reader(sink=whole.sink, handlers=checks, page_size=_PAGE)
    try:
        events = _events(reader, data, endless=endless)
    except _Undecided:
        return Verdict(_OPEN, True)
    if events is None:
        return verdict(data, release, blocks)._replace(lasting=True)
    # Also behind what should be refused.
    lasting = any(isinstance(e, Command) and e.number in _LASTING for e in events)
    try:
        if checks.refused is not None:
            raise checks.refused
        listed = _listed(events, reader, len(data))
    except _Undecided:
        return Verdict(_OPEN, lasting)
    except StreamError as error:
        return _refused(error, lasting)
    whole.sink.mark()
    digests = {block.name: _digest(block) for block in ram if block.name in listed}
    return Verdict({"outcome": "accept", "ram": digests}, lasting)


def _events(reader: Reader, data: bytes, *, endless: bool) -> list[Event] | None:
    """All events; None if more zeros were wanted than are looked at."""
    events = reader.feed(data)
    if not endless:
        return events + reader.finish()
    for _ in range(ZEROS // _PAGE):
        if reader.error is not None or any(isinstance(event, Eof) for event in events):
            return events
        events += reader.feed(bytes(_PAGE))
    return None


def _listed(events: list[Event], reader: Reader, size: int) -> set[str]:
    """The RAM blocks that are listed; raises ``StreamError`` if anything is wrong."""
    listed: set[str] = set()
    idstr = ""
    for event in events:
        if isinstance(event, (Section, Command, Eof)) and not reader.configured:
            # What a reader takes for a stream of 2014 and before.
            raise stream_error("configuration.truncated", event.offset, None, "none")
        if isinstance(event, Section):
            idstr = event.idstr
        _check(event, idstr)
        if isinstance(event, RamBlocks):
            listed.update(name for name, _ in event.blocks)
        if isinstance(event, Eof):
            break
    else:
        raise reader.error or stream_error("stream.truncated", size, None, "no EOF mark")
    if reader.footers is False:
        raise stream_error("footer.missing", size, None, "no footers")
    return listed


def _refused(error: StreamError, lasting: bool) -> Verdict:
    rule = rules()[error.rule]
    if rule.level == "MAY":
        return Verdict(_OPEN, True)
    kind = CLASSES[rule.errno or "EINVAL"]
    told = {"rule": rule.id, "offset": error.offset, "section": error.section}
    return Verdict({"outcome": "reject", "class": kind, **told}, lasting or rule.id in _REMEMBERED)


def _digest(block: RamBlock) -> str:
    digest = hashlib.sha256()
    for at in range(0, block.used_length, _PAGE):
        page = block.view[at : at + _PAGE]
        if any(page):
            digest.update(at.to_bytes(8) + page)
    return digest.hexdigest()


def _check(event: Event, idstr: str) -> None:
    """Refuse what no handler is asked about, in section ``idstr``; raises ``StreamError``."""
    if isinstance(event, Header) and event.version != VERSION_3:
        raise stream_error("header.version", 4, None, "an old version")
    if isinstance(event, Device) and isinstance(event.state, dict):
        _check_state(event, idstr)
    if not isinstance(event, Command) or event.number == CMD_SWITCHOVER_START:
        return
    if event.number in _UNASKED:
        raise stream_error("command.unsupported", event.offset + 1, None, "unasked")
    raise _Undecided


def _check_state(event: Device, idstr: str) -> None:
    fields = dict(event.state["fields"])
    if idstr == "globalstate":
        text, nul, _ = fields["runstate"].partition(b"\0")
        if not nul or text.decode("latin-1") not in _RUNSTATES:
            raise stream_error("section.state.refused", event.offset, idstr, f"{text!r}")
    if idstr == "cpu":
        misa = fields.get("env.misa")
        mxl = fields["env.misa_mxl"] if misa is None else misa >> 62
        if mxl != _MXL:
            raise stream_error("device.riscv-cpu.misa-mxl", event.offset, idstr, f"{mxl}")


class _Checks(Handlers):
    """The sections of the machine, and how each is read.  ``refused``: why it should have been."""

    def __init__(self, release: str, ram: Ram) -> None:
        super().__init__()
        self._layouts: Final = layouts("riscv", release, harts=1)
        self._ram: Final = ram
        # Of each section the latest id, which is all that QEMU knows.
        self._ids: Final[dict[str, int]] = {}
        self.refused: StreamError | None = None

    def configuration(self, event: Configuration) -> None:
        if event.machine == _MACHINE:
            return
        error = stream_error("configuration.machine.differs", event.offset + 1, None, event.machine)
        if not _MACHINE.startswith(event.machine):
            raise error
        # QEMU goes on.
        self.refused = error

    def ram_blocks(self, event: RamBlocks) -> None:
        self._ram.check(event)

    def begin(self, section: Section) -> dict[str, Any] | None:
        idstr, version = section.idstr, section.version_id
        if section.type in (SECTION_PART, SECTION_END) and self._ids[idstr] != section.section_id:
            raise _Undecided(idstr)
        self._ids[idstr] = section.section_id
        if idstr in _DISKS:
            raise _Undecided(idstr)
        layout = None if idstr == RAM_IDSTR else self._layouts.get(idstr)
        if layout is None and idstr != RAM_IDSTR:
            raise self._error("section.unknown", section)
        if section.instance_id != 0:
            raise self._error("section.instance.unknown", section)
        newest = layout["version"] if layout else RAM_VERSION
        if version > newest:
            raise self._error("section.version.newer-than-supported", section)
        if version < _OLDEST.get(idstr, newest):
            raise self._error("section.version.older-than-minimum", section)
        if version < newest:
            raise _Undecided(idstr)
        return layout

    def _error(self, rule: str, section: Section) -> StreamError:
        detail = f"instance {section.instance_id}, version {section.version_id}"
        return stream_error(rule, section.offset, section.idstr, detail)
