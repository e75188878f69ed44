"""What is fuzzed: functions of the input, which raise where something is not as it should be.

What an input decides, it decides by its bytes alone, so that every input can be replayed.  Inputs
are what users have: streams, texts, files; how they come in pieces follows from their checksum.
"""

import errno
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from random import Random
from typing import Any, Final, NamedTuple
from zlib import crc32

from savevm.channel import BUFFER, Channel, End, Operations, RateLimit
from savevm.envelope import libvirt
from savevm.errors import StreamError
from savevm.machine.clint import MTIP
from savevm.machine.layouts import LOST
from savevm.machine.spike import Spike
from savevm.machine.state import MachineState
from savevm.migration.spike import Arrival, describer
from savevm.qcow2 import Image
from savevm.savevm import Format, Loader, LoadError, save
from savevm.source import Source, SourceError
from savevm.stream.reader import Reader
from savevm.transcript import Memory, Transcriber, rebuild, transcribe
from savevm.transport.memory import MemoryOutput
from savevm.vmdesc import Description, DescriptionError, find_description
from savevm_conformance.adapters import ours
from savevm_conformance.protocol import SAYS
from savevm_fuzz.mutations import mutate
from savevm_fuzz.oracle import disagreement, predict
from savevm_fuzz.seeds import Seed, seeds
from savevm_spec import vmdesc
from savevm_spec.constants import (
    EOF,
    LIBVIRT_MAGIC,
    LIBVIRT_MAGIC_PARTIAL,
    MAGIC,
    QCOW2_MAGIC,
    SECTION_FULL,
    SUBSECTION,
    VERSION_3,
    VMDESCRIPTION,
)
from savevm_spec.envelope import libvirt as grammar
from savevm_spec.errors import GrammarError
from savevm_spec.rules import rules

__all__ = ["TARGETS", "Broken", "Target"]

# Bytes that are taken from what may hold more than its input: compressed data, sparse disks.
_TAKEN: Final = 1 << 20
# Those that need no program.
_COMPRESSIONS: Final = (None, "gzip", "bzip2", "xz")
# Of pieces, in bytes, and of input that is long.
_SIZES: Final = ((1, 2, 3, 8), (7, 100, 513, 4096), (4096, 1 << 16))
_LONG: Final = 1 << 10
_MEMORY: Final = 16 << 10
_INSTRUCTIONS: Final = 50
_FFLAGS: Final = 0x1F  # of fcsr


class Broken(AssertionError):
    """Something does not hold that must, whatever the input."""


class Target(NamedTuple):
    """``run`` and ``compare``, which holds the reference against the grammar and is slow, raise.

    ``largest`` is the length of the longest input in bytes; ``mutate`` knows what inputs are made of.
    """

    run: Callable[[bytes], None]
    compare: Callable[[bytes], None] | None
    largest: int
    mutate: Callable[[bytes, Random], bytes] | None = None


def _hold(fine: object, *what: object) -> None:
    if not fine:
        raise Broken(*what)


def _pieces(data: bytes) -> Iterator[bytes]:
    """``data`` in pieces of many sizes; long input not in the smallest, which would take long."""
    random = Random(crc32(data))
    sizes = random.choice(_SIZES[len(data) > _LONG :])
    at = 0
    while at < len(data):
        end = at + random.choice(sizes)
        yield data[at:end]
        at = end


def _refused(error: StreamError, size: int | None) -> None:
    """An error of a rule that is to be refused, within the input if its ``size`` is given."""
    _hold(rules()[error.rule].violation == "reject", "not a reason to refuse", error)
    _hold(error.offset >= 0 and (size is None or error.offset <= size), "outside", error)


# Streams


def _read(pieces: Iterator[bytes], description: Description | None) -> tuple[Any, Reader]:
    memory = Memory()
    reader = Reader(description=description, sink=memory)
    transcriber = Transcriber(memory)
    for piece in pieces:
        transcriber.add(reader.feed(piece))
    transcriber.add(reader.finish())
    return transcriber.result(reader), reader


def read(data: bytes) -> None:
    """The reader: chunks make no difference, and what it accepts it can write again."""
    description = find_description(data)
    whole, _ = _read(iter((data,)), description)
    pieces, reader = _read(_pieces(data), description)
    _hold(whole == pieces, "another transcript in pieces", whole, pieces)
    if reader.error is not None:
        _refused(reader.error, len(data))
    else:
        _hold(rebuild(data) == data, "other bytes when written again")
    # As from a pipe, whose end nobody has seen; every second, as it takes as long.
    if crc32(data) & 1:
        whole, _ = _read(iter((data,)), None)
        pieces, _ = _read(_pieces(data), None)
        _hold(whole == pieces, "another transcript in pieces of a pipe", whole, pieces)


def agree(data: bytes) -> None:
    """Reference and grammar: the same verdict, transcript and findings."""
    wrong = disagreement(predict(data), ours.verdict(transcribe(data), data, rebuild), SAYS)
    _hold(wrong is None, wrong)


# Descriptions


def _filled(value: Any, random: Random) -> Iterator[bytes]:
    """Bytes for the fields and subsections that an entry of a description has."""
    fields, parts = (value.get(key) for key in ("fields", "subsections"))
    for field in fields if isinstance(fields, list) else ():
        if isinstance(field, dict) and isinstance(size := field.get("size"), int):
            yield random.randbytes(max(0, min(size, 1 << 10)))
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict):
            yield struct.pack(">B", SUBSECTION) + _counted(part.get("vmsd_name"))
            yield struct.pack(">I", _number(part.get("version")))
            yield from _filled(part, random)


def _counted(name: Any) -> bytes:
    text = str(name).encode("latin-1", "replace")[:255]
    return bytes((len(text),)) + text


def _number(value: Any) -> int:
    return value & 0xFFFFFFFF if isinstance(value, int) else 0


def _described(text: bytes, description: Description) -> bytes:
    """A stream with a section of each device that is described, as far as one can be guessed."""
    random = Random(crc32(text))
    out = [struct.pack(">II", MAGIC, VERSION_3)]
    for number, device in enumerate(islice(description.devices, 16)):
        if isinstance(device, dict):
            out.append(struct.pack(">BI", SECTION_FULL, number) + _counted(device.get("name")))
            numbers = (_number(device.get(key)) for key in ("instance_id", "version"))
            out.append(struct.pack(">II", *numbers))
            out += islice(_filled(device, random), 256)
    return b"".join((*out, struct.pack(">BBI", EOF, VMDESCRIPTION, len(text)), text))


def describe(text: bytes) -> None:
    """A description: found at the end of a stream, and used for the devices that it describes."""
    try:
        description = Description(text)
    except DescriptionError as error:
        _hold(rules()[error.rule].violation == "reject", "not a reason to refuse", error)
        return
    stream = _described(text, description)
    if text[:1] == b"{" and text[-1:] == b"}":
        found = find_description(stream)
        _hold(found is not None and found.text == text, "not found")
    read(stream)


def agree_on_description(text: bytes) -> None:
    """Reference and grammar: the same texts are descriptions, and of the same."""
    try:
        theirs = vmdesc.Description(text)
    except (ValueError, RecursionError):
        theirs = None
    try:
        description = Description(text)
    except DescriptionError as error:
        _hold(theirs is None, "refused", error)
        return
    _hold(theirs is not None, "taken")
    assert theirs is not None
    _hold(len(description.devices) == theirs.count, "other devices")
    _hold(description.page_size == theirs.page_size, "another page size")
    agree(_described(text, description))


# What streams come wrapped in


@contextmanager
def _file(data: bytes) -> Iterator[str]:
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def unwrap(data: bytes) -> None:
    """Files: the stream in them, or the rule that they break; qcow2 images can be written, too."""
    size = None if data.startswith(_QCOW2) else len(data)
    with _file(data) as path:
        try:
            with Source(path) as source:
                json.dumps(source.envelope and source.envelope.jsonable())
                source.description()
                if source.envelope is None or source.envelope.compression in _COMPRESSIONS:
                    chunks = source.chunks()
                    taken = 0
                    while taken < _TAKEN and (chunk := next(chunks, b"")):
                        taken += len(chunk)
                for finding in source.findings:
                    _hold(rules()[finding.rule].violation != "reject", "found only", finding)
        except StreamError as error:
            _refused(error, size)
        except SourceError:
            pass
        if data.startswith(_QCOW2):
            _use_image(path, data)


_QCOW2: Final = QCOW2_MAGIC.to_bytes(4)


def _states(path: str) -> dict[tuple[str, str], bytes]:
    """The beginnings of all VM states that can be read; raises ``StreamError`` for other images."""
    found = {}
    with Image(path) as image:
        for snapshot in image.snapshots()[:4]:
            try:
                state = image.read_state(snapshot, 0, 1 << 14)
                image.read_state(snapshot, max(0, snapshot.vm_state_size - 100), 200)
            except StreamError as error:
                _refused(error, None)
                continue
            found[snapshot.id, snapshot.name] = state
    return found


def _use_image(path: str, data: bytes) -> None:
    """Write, read and delete a VM state; what else is in the image stays as it is."""
    name, state = "\x1bfuzz", Random(crc32(data)).randbytes(700)
    try:
        before = _states(path)
        with Image(path, writable=True) as image:
            writer = image.write_state(name)
            writer.write(0, state)
            written = writer.commit()
        during = _states(path)
        key = written.id, written.name
        _hold(during.pop(key, state) == state, "another state than was written")
        _hold(all(during.get(k, v) == v for k, v in before.items()), "writing changed others")
        with Image(path, writable=True) as image:
            image.delete(image.find(name))
        _hold(_states(path) == before, "deleting changed others")
    except StreamError as error:
        _refused(error, None)
    except FileExistsError:
        pass


def agree_on_header(data: bytes) -> None:
    """Reference and grammar: the same header of a save image of libvirt."""
    if data.startswith((LIBVIRT_MAGIC, LIBVIRT_MAGIC_PARTIAL)):
        here, there = _header_here(data), _header_there(data)
        _hold(here == there, "another header", here, there)


def _header_here(data: bytes) -> object:
    try:
        image = libvirt.read(data)
    except StreamError as error:
        return error.rule, error.offset
    findings = [(f.rule, f.offset) for f in image.findings]
    return image.byte_order, image.version, image.domain_xml, image.cookie, findings


def _header_there(data: bytes) -> object:
    try:
        image, found = grammar.parse(data)
    except GrammarError as error:
        return error.rule, error.offset
    cookie = image.cookie and image.cookie.text
    findings = [(f.rule, f.offset) for f in found]
    return image.header.byte_order, image.header.version, image.domain_xml.text, cookie, findings


# The channel


class _Plan:
    """Numbers from the input; zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        self._bytes = iter(data)
        self.ended = False

    def byte(self) -> int:
        number = next(self._bytes, None)
        self.ended = number is None
        return number or 0

    def size(self) -> int:
        """Mostly few, and now and then about as much as is buffered."""
        kind, number = divmod(self.byte(), 64)
        return number if kind < 2 else number << 5 if kind == 2 else BUFFER - 32 + number


_ERRORS: Final = (errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.ENOSPC)


class _Wire(Operations):
    """Does what the plan says: some bytes, not now, interrupted, an end, an error."""

    def __init__(self, plan: _Plan, data: bytes, *, seekable: bool) -> None:
        self.seekable = seekable
        self.given = data
        self.taken = bytearray()
        self.failed = 0
        self.calls_after_failure = 0
        self._plan = plan

    def _answer(self, most: int) -> int:
        self.calls_after_failure += bool(self.failed)
        number = self._plan.byte()
        if self._plan.ended or number < 128:
            return most
        if number < 200:
            return min(most, number - 127)
        if number < 230:
            return -errno.EINTR
        if number < 250:
            return -errno.EAGAIN
        self.failed = -_ERRORS[number % len(_ERRORS)]
        return self.failed

    def put_buffer(self, data: memoryview, position: int) -> int:
        count = self._answer(len(data))
        if count > 0:
            _hold(position <= len(self.taken), "a gap at", position)
            self.taken[position : position + count] = data[:count]
        return count

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        rest = self.given[position : position + len(buffer)]
        count = self._answer(len(rest)) if rest else 0
        if count > 0:
            buffer[:count] = rest[:count]
        return count

    def close(self) -> int:
        return 0

    def rate_limit(self) -> int:
        return self._plan.byte() & 1


_BYTES: Final = Random(0).randbytes(3 * BUFFER)


def operate(data: bytes) -> None:
    """The channel: operations and faults as the input says; no byte is lost, doubled or moved."""
    plan = _Plan(data)
    kind = plan.byte()
    wire = _Wire(plan, _BYTES, seekable=bool(kind & 4))
    ticks = iter(range(1 << 30))
    rate = RateLimit(plan.byte() << 8, clock=lambda: next(ticks) / 100) if kind & 8 else None
    channel = Channel(wire, blocking=bool(kind & 2), pause=0, rate=rate)
    (_write if kind & 1 else _take)(plan, wire, channel)
    _hold(not wire.calls_after_failure, "used after an error")
    _hold(channel.error == wire.failed or channel.end is End.TRUNCATED, "another error")


def _write(plan: _Plan, wire: _Wire, channel: Channel) -> None:
    sent = bytearray()
    while not plan.ended:
        at = len(sent) % BUFFER
        piece = _BYTES[at : at + plan.size()]
        match plan.byte() % 8:
            case 0 | 1:
                done = channel.write(piece)
            case 2:
                piece = piece[:8].ljust(8, b"\1")
                done = channel.put_integer(int.from_bytes(piece), 8)
            case 3:
                piece = bytes((len(piece[:255]),)) + piece[:255]
                done = channel.put_counted(piece[1:])
            case 4 if piece:
                done = channel.write_buffers([piece[:1], piece[1:]][: len(piece)], len(piece))
            case 5:
                channel.notify()
                continue
            case 6 if channel.seekable and sent and not channel.error:
                at = plan.byte() % len(sent)
                piece = piece[: len(sent) - at]
                if channel.overwrite(at, piece) == len(piece):
                    sent[at : at + len(piece)] = piece
                continue
            case _:
                channel.flush()
                _hold(channel.rate_wait >= 0, "time goes back")
                _hold(not channel.error or not channel.rate_exceeded, "paused after an error")
                continue
        if done >= 0:
            _hold(done == len(piece), "less written", done)
            sent += piece
        else:
            _hold(done == channel.error != 0, "an error that is none", done)
            # What is not written yet goes with what failed.
            break
    while channel.notify() == -errno.EAGAIN:
        pass
    channel.close()
    _hold(channel.error or wire.taken == sent, "other bytes")
    _hold(sent.startswith(wire.taken[: len(sent)]) or channel.seekable, "bytes that are not")


def _take(plan: _Plan, wire: _Wire, channel: Channel) -> None:
    got = 0
    while not plan.ended:
        before, size = channel.position, plan.size()
        match plan.byte() % 6:
            case 0:
                data = channel.read(size)
                _hold(len(data) <= size, "more than asked for")
            case 1:
                data = channel.read_chunk(size or 1)
            case 2:
                data = channel.read_whole(size)
                _hold(len(data) in (0, size), "not whole")
            case 3:
                seen = channel.peek(min(size, BUFFER))
                _hold(wire.given.startswith(seen, got), "peeked at something else")
                continue
            case 4:
                number = channel.get_integer(8)
                data = number.to_bytes(8)[: channel.position - before]
            case _:
                text = channel.get_counted()
                data = wire.given[got : got + 1] + text if channel.position > before else b""
        _hold(channel.position == before + len(data), "another position")
        _hold(wire.given.startswith(data, got), "read something else")
        got += len(data)
    _hold(channel.transferred >= channel.position, "more read than came")
    channel.close()


# The machine


@cache
def _board() -> tuple[Spike, MachineState]:
    board = Spike(_MEMORY, deterministic=0)
    return board, board.state()


def load(data: bytes) -> None:
    """The machine: taken over whole or not at all, sent on as it came, and able to run."""
    board, fresh = _board()
    board.ram.write(0, bytes(_MEMORY))
    board.reset()
    board.adopt(fresh)
    board.set_runstate("inmigrate")
    before = board.state()
    arrival = Arrival(board)
    try:
        _feed(arrival, data)
        arrival.apply()
    except LoadError as error:
        if not isinstance(error.cause, StreamError):
            raise Broken("failed by", error.cause) from error
        _hold(0 <= error.cause.offset <= len(data), "outside", error.cause)
    except ValueError:
        pass
    else:
        _send_on(board, arrival.release)
        board.set_runstate("running")
        board.step(_INSTRUCTIONS)
        return
    _hold(board.state() == before, "refused, but changed")


def _feed(arrival: Arrival, data: bytes) -> None:
    loader = Loader(arrival.registry, "spike")
    for piece in _pieces(data):
        loader.feed(piece)
    loader.finish()


def _send_on(board: Spike, release: str) -> None:
    state = board.state()
    output = MemoryOutput()
    channel = Channel(output)
    save(describer(board)(release, (), lambda: state.runstate), channel, Format(machine="spike"))
    channel.close()
    arrival = Arrival(board)
    _feed(arrival, bytes(output.data))
    arrival.apply()
    _hold(_sent(board.state()) == _sent(state), "sent on as another", state, board.state())


def _sent(state: MachineState) -> MachineState:
    """What of a state every release has a place for."""
    for hart in state.harts:
        hart.csrs = {name: value for name, value in hart.csrs.items() if name not in LOST}
        hart.csrs["fcsr"] &= ~_FFLAGS
        # That of a timer, which is sent so that the guest looks at the clock.
        hart.csrs["mip"] &= ~MTIP
    state.tohost = state.fromhost = 0
    return state


# Mutations


def _mutate_stream(data: bytes, random: Random) -> bytes:
    return mutate(Seed("", data), random, seeds()).data


_TOKEN: Final = re.compile(rb'-?\d+|"[^"\\]*"|[][{},:]')
_TOKENS: Final = b'0 -1 1 2 4294967296 {} [] "" null true 1.5'.split()


def _mutate_text(data: bytes, random: Random) -> bytes:
    """Another token in the place of one, or some left out or repeated."""
    tokens = list(_TOKEN.finditer(data))
    if not tokens:
        return data
    one, other = sorted(random.choices(tokens, k=2), key=re.Match.start)
    new = random.choice((*_TOKENS, other[0], b"", data[one.start() : other.end()] * 2))
    return data[: one.start()] + new + data[one.end() :]


def _mutate_file(data: bytes, random: Random) -> bytes:
    """Other numbers where there are some, such as are elsewhere in the file or near those."""
    out = bytearray(data)
    places = [at for at in range(0, len(out) - 7, 4) if any(out[at : at + 8])]
    for _ in range(random.choice((1, 1, 2, 4)) if places else 0):
        size = random.choice((1, 2, 4, 8))
        at, other = (random.choice(places) for _ in range(2))
        at += 8 - size if random.getrandbits(1) else 0
        number = int.from_bytes(data[other : other + size]) + random.choice((-512, -1, 0, 1, 512))
        number ^= random.choice((0, 0, 1, 1 << 8 * size - 1, 1 << 8 * size - 2))
        out[at : at + size] = (number % (1 << 8 * size)).to_bytes(size)
    return bytes(out)


TARGETS: Final = {
    "reader": Target(read, agree, 1 << 13, _mutate_stream),
    "vmdesc": Target(describe, agree_on_description, 1 << 13, _mutate_text),
    "envelopes": Target(unwrap, agree_on_header, 1 << 15, _mutate_file),
    "channel": Target(operate, None, 1 << 10),
    "machine": Target(load, None, 1 << 13, _mutate_stream),
}
"""By name."""
