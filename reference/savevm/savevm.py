"""Saving and loading a machine: the steps of svn r5434, and as they are today.

A ``Registry`` holds what is saved (see ``savable``).  ``Saver`` writes it in steps that return at once, ``begin``,
``iterate`` and ``complete``, so that a machine runs meanwhile; ``save`` and ``save_async`` take the
steps.  ``Loader`` is fed the bytes of a stream; ``load`` feeds it from a channel.
"""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from savevm import vmstate
from savevm.channel import Channel, ChannelError, End
from savevm.errors import StreamError, stream_error
from savevm.savable import (
    CannotExpressError,
    Device,
    Format,
    Live,
    Ram,
    RefusedError,
    Registry,
    Savable,
)
from savevm.sink import Sink
from savevm.stream.events import (
    BodyEnd,
    Command,
    Configuration,
    Eof,
    Event,
    Footer,
    Header,
    RamBlocks,
    RecordBody,
    Section,
    VmDescription,
)
from savevm.stream.events import Device as DeviceEvent
from savevm.stream.handlers import Handlers, LiveBody
from savevm.stream.reader import Reader
from savevm.stream.writer import Writer
from savevm.vmdesc import dumps
from savevm_spec.constants import (
    RAM_IDSTR,
    RAM_PAGE_SIZE_DEFAULT,
    SECTION_END,
    SECTION_FULL,
    SECTION_PART,
    SECTION_START,
    VERSION_2,
)

__all__ = [
    "CannotExpressError",
    "Device",
    "Format",
    "Live",
    "LoadError",
    "Loader",
    "Machine",
    "Progress",
    "Ram",
    "Registry",
    "Saver",
    "load",
    "load_async",
    "save",
    "save_async",
]

# What one section writes before the next has its turn, in bytes.
_TURN: Final = 1 << 20
_VERSION_2_BODY_MAX: Final = (1 << 31) - 1
# Between two attempts to go on where nothing tells when, in seconds.
_PAUSE: Final = 0.001


class LoadError(Exception):
    """Loading failed: ``cause`` says why, ``applied`` what of the machine was changed before."""

    def __init__(self, cause: Exception, applied: list[str]) -> None:
        self.cause: Final = cause
        self.applied: Final = applied
        changed = f"; changed before: {', '.join(applied)}" if applied else "; nothing was changed"
        super().__init__(f"{cause}{changed}")


class Machine(Protocol):
    """What is stopped for the last steps of a save, and for a load."""

    @property
    def running(self) -> bool: ...

    def stop(self) -> None: ...

    def resume(self) -> None: ...


@dataclass
class Progress:
    """How far a save is.  ``phase``: "live", "stopped" or "completed" (the channel has given all to
    its transport); all else in bytes."""

    phase: str
    round: int
    written: int
    left: int


class Saver:
    """Writes a registry to a channel, step by step.

    ``begin`` returns what is left in bytes, of what the sections have to send, and ``complete`` what
    the channel holds back.  They, and ``iterate``, raise ``ChannelError`` when the channel fails; the
    machine then runs as it did before.  ``machine`` None: nothing runs.

    ``opening`` are commands behind the configuration, ``switchover`` those before the first END.
    ``whole`` is the position, in bytes, behind the EOF mark once that is written: who has all bytes
    before it can go on in the machine's place.
    """

    def __init__(
        self,
        registry: Registry,
        channel: Channel,
        form: Format | None = None,
        machine: Machine | None = None,
        *,
        opening: Sequence[Command] = (),
        switchover: Sequence[Command] = (),
    ) -> None:
        self.form: Final = form or Format()
        self.channel: Final = channel
        self.round = 0
        self.whole: int | None = None
        self.phase = "live"
        self._machine = machine
        self._opening: Final = opening
        self._switchover: Final = switchover
        self._writer: Final = Writer()
        every = registry.ordered()
        live = [entry for entry in every if isinstance(entry, Live)]
        self._versions = {entry.section_id: entry.written_version(self.form) for entry in live}
        self._live: Final = [entry for entry in live if entry.in_parts(self.form)]
        self._whole: Final = [entry for entry in every if entry not in self._live]
        self._next = 0  # the live section whose turn it is
        self._resume = False
        self._written = False
        if self.form.version == VERSION_2 and not channel.seekable:
            raise CannotExpressError(
                "version 2 needs an output that can be written again before its end"
            )

    def _event(self, event: Event) -> None:
        self.channel.write(self._writer.write(event))

    def _start(self, entry: Savable, kind: int) -> None:
        assert entry.instance_id is not None
        version = self._versions.get(entry.section_id, entry.version_id)
        self._event(Section(0, kind, entry.section_id, entry.idstr, entry.instance_id, version))

    def _footer(self, entry: Savable) -> None:
        if self.form.dialect.configuration:
            self._event(Footer(0, entry.section_id))

    @property
    def left(self) -> int:
        """Bytes that the live sections are to send while the machine runs, as of now."""
        return sum(entry.left for entry in self._live)

    def progress(self) -> Progress:
        """How far the save is."""
        left = self.channel.held_back if self._written else self.left
        return Progress(self.phase, self.round, self.channel.position, left)

    def begin(self) -> int:
        """Write the file header, the configuration and every START; what is left."""
        form = self.form
        # One that does not run may be told to, before this ends.
        live = self._machine is not None
        try:
            self._event(Header(0, form.version, 0))
            if form.version == VERSION_2:
                # Nothing else can be sent before the machine stops.
                return self._checked()
            if form.dialect.configuration:
                self._event(Configuration(0, form.machine, list(form.subsections)))
            for command in self._opening:
                self._event(command)
            for entry in self._live:
                self._start(entry, SECTION_START)
                entry.begin(self.channel, form, live)
                self._footer(entry)
            return self._checked()
        except BaseException:
            self.cancel()
            raise

    def iterate(self) -> int:
        """Give every live section its turn, until the channel asks to pause; what is left."""
        self.step()
        return self.left

    def step(self) -> None:
        """``iterate`` for who does not ask what is left, which takes a look at all that was written."""
        try:
            self.round += 1
            for _ in range(len(self._live)):
                entry = self._live[self._next % len(self._live)]
                self._next += 1
                self._start(entry, SECTION_PART)
                entry.iterate(self.channel, _TURN)
                self._footer(entry)
                if self.channel.error or self.channel.rate_exceeded:
                    break
            self.channel.check()
        except BaseException:
            self.cancel()
            raise

    def complete(self) -> int:
        """Stop the machine and write all that is left; what the channel holds back then."""
        try:
            self.stop()
            if self.form.version == VERSION_2:
                self._complete_version_2()
            else:
                self._complete_version_3()
            self._written = True
            return self.flush()
        except BaseException:
            self.cancel()
            raise

    def stop(self) -> None:
        """Stop the machine, if it runs, and limit the channel's rate no more."""
        self.phase = "stopped"
        self.channel.rate = None
        if self._machine is not None and self._machine.running:
            self._machine.stop()
            self._resume = True

    def flush(self) -> int:
        """Offer the channel what it holds back; what it still does."""
        try:
            if self.channel.frozen:
                self.channel.notify()
            else:
                self.channel.flush()
            self.channel.check()
        except BaseException:
            self.cancel()
            raise
        left = self.channel.held_back
        if self._written and not left:
            self.phase = "completed"
        return left

    def cancel(self) -> None:
        """End the save, wherever it is, and let the machine run as it did before."""
        try:
            for entry in [*self._live, *self._whole]:
                if isinstance(entry, Live):
                    entry.cancel()
        finally:
            self.release()

    def release(self) -> None:
        """Let the machine run again if this save stopped it."""
        if self._resume and self._machine is not None:
            self._resume = False
            self._machine.resume()

    def _checked(self) -> int:
        self.channel.check()
        return self.left

    def _complete_version_3(self) -> None:
        for command in self._switchover:
            self._event(command)
        for entry in self._live:
            self._start(entry, SECTION_END)
            entry.complete(self.channel)
            self._footer(entry)
            self.channel.check()
            entry.cancel()
        described = []
        for savable in self._whole:
            if isinstance(savable, Live):
                self._start(savable, SECTION_FULL)
                savable.begin(self.channel, self.form, False)
                self._footer(savable)
                continue
            assert isinstance(savable, Device)
            if not savable.needed():
                continue
            layout, body = _body(savable)
            self._start(savable, SECTION_FULL)
            self.channel.write(body)
            self._footer(savable)
            described.append(_description(savable, layout, len(body)))
        self._event(Eof(0))
        self.whole = self.channel.position
        if self.form.dialect.vmdescription:
            page_size = next(
                (e.page_size for e in self._live if isinstance(e, Ram)), RAM_PAGE_SIZE_DEFAULT
            )
            text = dumps({"page_size": page_size, "devices": described})
            self._event(VmDescription(0, text.encode("ascii"), len(described)))

    def _complete_version_2(self) -> None:
        channel = self.channel
        begin = channel.position
        for entry in self._whole:
            if isinstance(entry, Device) and not entry.needed():
                continue
            assert entry.instance_id is not None
            version = self._versions.get(entry.section_id, entry.version_id)
            self._event(Section(0, 0, 0, entry.idstr, entry.instance_id, version, 0))
            start = channel.position
            if isinstance(entry, Live):
                entry.begin(channel, self.form, False)
            else:
                assert isinstance(entry, Device)
                channel.write(_body(entry)[1])
            length = channel.position - start
            if length > _VERSION_2_BODY_MAX:
                raise CannotExpressError(
                    f"a record of version 2 has 31 bits for its length; {entry.idstr!r} has {length} bytes"
                )
            channel.overwrite(start - 4, struct.pack(">I", length))
            channel.check()
        channel.overwrite(begin - 8, struct.pack(">Q", channel.position - begin))
        channel.check()


def _body(device: Device) -> tuple[dict[str, Any], bytes]:
    """Layout and bytes of a device's state."""
    layout = device.layout(device.version_id)
    assert layout is not None
    state = device.save()
    return layout, state if isinstance(state, bytes) else vmstate.encode(layout, state)


def _description(device: Device, layout: dict[str, Any], size: int) -> dict[str, Any]:
    """The entry of a device in a VMDESCRIPTION."""
    entry: dict[str, Any] = {"name": device.idstr, "instance_id": device.instance_id}
    if "vmsd_name" in layout:
        return entry | layout
    data = {"name": "data", "size": size, "type": "buffer"}
    return entry | {"size": size, "fields": [data]}


def _left_to_do(saver: Saver, threshold: int, deadline: float | None) -> bool:
    """Whether another round is worth its while."""
    return saver.left > threshold and (deadline is None or time.monotonic() < deadline)


def save(
    registry: Registry,
    channel: Channel,
    form: Format | None = None,
    machine: Machine | None = None,
    *,
    threshold: int = 0,
    timeout: float | None = None,
) -> Saver:
    """Write a whole stream, and stop the machine when at most ``threshold`` bytes are left.

    It is stopped after ``timeout`` seconds in any case, and left so: ``release`` of the result lets
    it run again.  Raises ``ChannelError`` and ``CannotExpressError``; the machine then runs as before.
    """
    saver = Saver(registry, channel, form, machine)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        saver.begin()
        while _left_to_do(saver, threshold, deadline):
            if channel.rate_exceeded:
                time.sleep(channel.rate_wait or _PAUSE)
                saver.flush()
            else:
                saver.step()
        left = saver.complete()
        while left:
            time.sleep(_PAUSE)
            left = saver.flush()
    except BaseException:
        saver.cancel()
        raise
    return saver


async def save_async(
    registry: Registry,
    channel: Channel,
    form: Format | None = None,
    machine: Machine | None = None,
    *,
    threshold: int = 0,
    timeout: float | None = None,
) -> AsyncIterator[Progress]:
    """As ``save``, over a channel that does not block, with a ``Progress`` after every step.

    The last one has the phase "completed".  Cancelling, or closing the iterator before that, ends
    the save, and the machine runs as before.
    """
    saver = Saver(registry, channel, form, machine)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        saver.begin()
        yield saver.progress()
        while _left_to_do(saver, threshold, deadline):
            await ready(channel)
            saver.step()
            yield saver.progress()
        saver.stop()
        # What is left goes out as the channel takes it: ``complete`` would have it wait in memory.
        while saver.left > _TURN:
            await ready(channel)
            saver.step()
            yield saver.progress()
        left = saver.complete()
        while left:
            yield saver.progress()
            await ready(channel)
            left = saver.flush()
    except BaseException:
        saver.cancel()
        raise
    yield saver.progress()


async def ready(channel: Channel) -> None:
    """Let others run until the channel takes more."""
    await asyncio.sleep(0)
    while channel.rate_exceeded:
        if channel.frozen:
            await descriptor(channel, writing=True)
            channel.notify()
        else:
            await asyncio.sleep(channel.rate_wait or _PAUSE)


async def descriptor(channel: Channel, *, writing: bool) -> None:
    """Wait until the transport is ready, or for a moment where nothing tells when it is."""
    descriptor = channel.fileno()
    if descriptor < 0:
        await asyncio.sleep(_PAUSE)
        return
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    if writing:
        loop.add_writer(descriptor, ready.set)
    else:
        loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        if writing:
            loop.remove_writer(descriptor)
        else:
            loop.remove_reader(descriptor)


class _Checks(Handlers):
    """Finds the handler of each section, and refuses what must not be loaded."""

    def __init__(self, loader: "Loader") -> None:
        super().__init__()
        self.loader = loader
        self._begun: dict[int, Savable] = {}  # by section id of the stream
        self._ended: set[int] = set()
        self._seen: set[tuple[str, int]] = set()

    def configuration(self, event: Configuration) -> None:
        expected = self.loader.machine_name
        if expected is not None and event.machine != expected:
            raise stream_error(
                "configuration.machine.differs",
                event.offset + 5,
                None,
                f"machine {event.machine!r}, this one is {expected!r}",
            )

    def ram_blocks(self, event: RamBlocks) -> None:
        ram = self.loader.ram
        if ram is not None:
            ram.check(event)
            # No page comes before.
            self.loader.begin(ram)

    def begin(self, section: Section) -> dict[str, Any] | LiveBody | None:
        if section.type in (SECTION_PART, SECTION_END):
            entry = self._go_on(section)
        else:
            _check_version(self.loader.reader.version)
            found = self._find(section)
            if found is None:
                return None
            entry = found
        if entry is not self.loader.ram:
            self.loader.begin(entry)
        if isinstance(entry, Live):
            return entry.body(section)
        assert isinstance(entry, Device)
        layout = entry.layout(section.version_id)
        if layout is None or "vmsd_name" in layout:
            return layout
        # Without a name it would be a schema, not an entry of a description.
        return {"name": entry.idstr, **layout}

    def _go_on(self, section: Section) -> Savable:
        entry = self._begun.get(section.section_id)
        if entry is None:
            raise stream_error(
                "section.part.not-started",
                section.offset + 1,
                section.idstr,
                f"section id {section.section_id} is not that of a START",
            )
        if section.section_id in self._ended:
            raise stream_error(
                "section.part.after-end",
                section.offset + 1,
                section.idstr,
                f"section id {section.section_id} has had its END",
            )
        if section.type == SECTION_END:
            self._ended.add(section.section_id)
        return entry

    def _find(self, section: Section) -> Savable | None:
        """The entry of a section that begins here; None for what is skipped."""
        idstr, instance_id, version = section.idstr, section.instance_id, section.version_id
        idstr_at = section.offset + (5 if section.type else 0)
        instance_at = idstr_at + 1 + len(idstr)
        registry = self.loader.registry
        entry = registry.find(idstr, instance_id)
        if entry is None:
            known = registry.has(idstr)
            if section.type == 0:
                self.loader.warnings.append(
                    f"offset {section.offset}: section {idstr!r}, instance {instance_id}: skipped, "
                    "the machine has none"
                )
                return None
            raise stream_error(
                "section.instance.unknown" if known else "section.unknown",
                instance_at if known else idstr_at,
                idstr,
                f"the machine has no section {idstr!r}"
                + (f" of instance {instance_id}" if known else ""),
            )
        if version > entry.version_id:
            raise stream_error(
                "section.version.newer-than-supported",
                instance_at + 4,
                idstr,
                f"version {version}, supported up to {entry.version_id}",
            )
        if version < entry.minimum_version_id or not entry.loads(version):
            supported = f"from {entry.minimum_version_id}"
            if version >= entry.minimum_version_id:
                supported += " are only some"
            raise stream_error(
                "section.version.older-than-minimum",
                instance_at + 4,
                idstr,
                f"version {version}, supported {supported}",
            )
        whole = isinstance(entry, Device) or (idstr == RAM_IDSTR and version < 3)
        if section.type and (section.type == SECTION_FULL) != whole:
            kind = "FULL" if whole else "START"
            raise stream_error(
                "section.kind", section.offset, idstr, f"section {idstr!r} does not come as {kind}"
            )
        if section.type and section.section_id in self._begun:
            # What its parts belong to could not be told.
            raise stream_error(
                "section.id.reused",
                section.offset + 1,
                idstr,
                f"section id {section.section_id} already stands for "
                f"{self._begun[section.section_id].idstr!r}",
            )
        if (idstr, instance_id) in self._seen:
            raise stream_error(
                "section.repeated", section.offset, idstr, f"section {idstr!r} comes again"
            )
        self._seen.add((idstr, instance_id))
        if section.type == SECTION_START:
            self._begun[section.section_id] = entry
        return entry

    def check_end(self, offset: int) -> None:
        """Refuse an EOF mark with sections that have not ended."""
        for section_id, entry in self._begun.items():
            if section_id not in self._ended:
                raise stream_error(
                    "section.end.missing", offset, entry.idstr, f"no END of section {entry.idstr!r}"
                )

    def missing(self) -> list[str]:
        """What the stream has no section of."""
        return [
            f"{entry.idstr} instance {entry.instance_id}"
            for entry in self.loader.registry.entries
            if (entry.idstr, entry.instance_id) not in self._seen
        ]


def _check_version(version: int) -> None:
    if version < VERSION_2:
        raise stream_error("header.version", 4, None, "streams of version 1 are not loaded")


def _undescribed(offset: int, section: Section) -> StreamError:
    detail = f"nothing here reads a body of version {section.version_id}"
    return stream_error("section.body.undescribed", offset, section.idstr, detail)


class Loader:
    """Applies a stream to what is registered.

    RAM and other live sections are placed as they come; devices take over their states in
    ``finish``, when the whole stream has been read and nothing was wrong.  ``machine_name``: what
    the configuration must say.  ``command`` is told the commands as they come, and raises
    ``StreamError`` to refuse one.  ``warnings`` are lines for people; ``missing`` says, after
    ``finish``, what has kept its state.

    ``ended``: the EOF mark has been read.  ``described``: the VMDESCRIPTION behind it too, and nothing
    follows that.
    """

    def __init__(
        self,
        registry: Registry,
        machine_name: str | None = None,
        *,
        command: Callable[[Command], None] | None = None,
    ) -> None:
        self.registry: Final = registry
        self.machine_name: Final = machine_name
        self.ended = False
        self.described = False
        self._command: Final = command
        self.warnings: Final[list[str]] = []
        self.missing: list[str] = []
        self.applied: Final[list[str]] = []
        self.ram: Final = next((e for e in registry.entries if isinstance(e, Ram)), None)
        self._checks: Final = _Checks(self)
        self.reader: Final = Reader(
            sink=self.ram.sink if self.ram is not None else Sink(),
            handlers=self._checks,
            page_size=self.ram.page_size if self.ram is not None else 0,
        )
        self._entry: Savable | None = None
        self._staged: list[tuple[Device, DeviceEvent, Section]] = []
        self._section: Section | None = None

    def begin(self, entry: Savable) -> None:
        """A body of ``entry`` is about to be read."""
        if isinstance(entry, Live) and entry.idstr not in self.applied:
            self.applied.append(entry.idstr)

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream, of any length.  Raises ``LoadError``."""
        self._take(self.reader.feed(data))

    def finish(self) -> None:
        """The stream has no more bytes: apply the devices.  Raises ``LoadError``."""
        self._take(self.reader.finish())
        for device, event, section in self._staged:
            state = event.raw if event.kind == "buffer" else event.state
            # Whatever it raises, it may have changed by then.
            self.applied.append(device.idstr)
            try:
                device.load(state, section.version_id)
            except ValueError as e:
                rule = e.rule if isinstance(e, RefusedError) else "section.state.refused"
                raise self._failed(stream_error(rule, event.offset, device.idstr, str(e))) from e
        self.missing = self._checks.missing()

    def _take(self, events: list[Event]) -> None:
        try:
            for event in events:
                self._event(event)
        except StreamError as e:
            raise self._failed(e) from None
        if self.reader.error is not None:
            raise self._failed(self.reader.error)

    def _event(self, event: Event) -> None:
        if isinstance(event, Header):
            # Also where no record comes to be refused.
            _check_version(event.version)
        elif isinstance(event, Section):
            self._section = event
        elif isinstance(event, RecordBody):
            section = self._section
            assert section is not None
            decoded = event.length < section.body_length or (
                self._staged and self._staged[-1][2] is section
            )
            if not decoded and self.registry.find(section.idstr, section.instance_id) is not None:
                raise _undescribed(event.offset, section)
        elif isinstance(event, DeviceEvent):
            assert self._section is not None
            entry = self.registry.find(self._section.idstr, self._section.instance_id)
            assert isinstance(entry, Device)
            if event.kind not in ("vmstate", "buffer"):
                raise _undescribed(event.offset, self._section)
            self._staged.append((entry, event, self._section))
        elif isinstance(event, BodyEnd):
            assert self._section is not None
            entry = self.registry.find(self._section.idstr, self._section.instance_id)
            if isinstance(entry, Live) and self._section.type != SECTION_PART:
                entry.loaded()
        elif isinstance(event, Command):
            if self._command is not None:
                self._command(event)
        elif isinstance(event, Eof):
            self._checks.check_end(event.offset)
            self.ended = True
        elif isinstance(event, VmDescription):
            self.described = True

    def _failed(self, cause: Exception) -> LoadError:
        return LoadError(cause, self.applied)


def load(
    registry: Registry,
    channel: Channel,
    machine: Machine | None = None,
    *,
    machine_name: str | None = None,
) -> Loader:
    """Load a stream up to the end of the channel; the machine is stopped meanwhile.

    Raises ``LoadError``, with a ``StreamError`` as cause for a bad stream (``TruncatedError`` where it
    ends too early) and a ``ChannelError`` for a channel that failed.  The machine then runs again only
    if nothing was changed.
    """
    loader = Loader(registry, machine_name)
    with _stopped(loader, machine):
        while True:
            if chunk := channel.read_chunk():
                loader.feed(chunk)
            elif channel.end is End.OPEN:
                time.sleep(_PAUSE)
            else:
                break
        _finish(loader, channel)
    return loader


async def load_async(
    registry: Registry,
    channel: Channel,
    machine: Machine | None = None,
    *,
    machine_name: str | None = None,
) -> Loader:
    """As ``load``, from a channel that does not block."""
    loader = Loader(registry, machine_name)
    with _stopped(loader, machine):
        while True:
            if chunk := channel.read_chunk():
                loader.feed(chunk)
                await asyncio.sleep(0)
            elif channel.end is End.OPEN:
                await descriptor(channel, writing=False)
            else:
                break
        _finish(loader, channel)
    return loader


def _finish(loader: Loader, channel: Channel) -> None:
    if channel.error:
        raise LoadError(ChannelError(channel.error, channel.end), loader.applied)
    loader.finish()


@contextmanager
def _stopped(loader: Loader, machine: Machine | None) -> Iterator[None]:
    """The machine is stopped; what happens to it then depends on what was changed."""
    if machine is None or not machine.running:
        yield
        return
    machine.stop()
    try:
        yield
    except BaseException:
        if not loader.applied:
            machine.resume()
        raise
    machine.resume()
