"""A real QEMU that stays, and loads one stream after the other from a snapshot in a disk image.

The VM state of the snapshot lies in a row in the image file, where each stream is written over the
one before, with zeros behind it; QEMU resets the machine and reads what is there when it is told to
load.  So it never sees the end of a stream, and what it makes of zeros is what is predicted.

Streams that leave traces in a process, and all whose outcome is not as predicted, are loaded by a
process of their own, as they come in from a source.
"""

import os
import re
import resource
import secrets
import shutil
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from savevm.qcow2 import Image
from savevm_conformance.adapters.qemu import (
    Ended,
    Machine,
    Piece,
    Refused,
    Silent,
    blocks,
    emulator_at,
    memory_digests,
)
from savevm_conformance.generate.model import SPIKE
from savevm_conformance.judge import said
from savevm_conformance.wire import Wire
from savevm_fuzz.targets import scratch
from savevm_fuzz.targets.adapter import AdapterTarget
from savevm_fuzz.targets.board import RELEASES, ZEROS, Verdict, verdict

__all__ = ["QemuTarget", "open_qemu"]

# Loads of one process, and bytes of the longest stream that it is given.
LOADS: Final = 2000
LARGEST: Final = 1 << 20
# Seconds for a process of its own, which waits for several things.
_ALONE: Final = 60.0
# How many streams before one that has ended a process are tried as what led to that.
_BEFORE: Final = 100
_UNTOLD: Final = {"outcome": "skip"}
_TAG: Final = "stream"
# It ends with the worker, also where that is killed.
_DIES_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")
_NO_CAPABILITIES: Final = b"\5\x1aconfiguration/capabilities\0\0\0\1\0\0\0\0"
_PLAIN: Final = bytes(Wire().header().machine().eof().data)
_CLUSTER_BITS: Final = 16
_OPTIONS: Final = ("-S", "-nodefaults", "-display", "none", "-accel", "tcg")
_ERROR: Final = re.compile(r"^Error: ", re.M)
_NOT_BEGUN: Final = re.compile(r"^Error: .*[Ss]napshot", re.M)
# How many times the memory of a load a process may reserve: QEMU does so with 4 bytes for each
# capability that a stream announces, but uses them only as they come.
_RESERVED: Final = 32
_PEAK: Final = re.compile(r"^VmHWM:\s*(\d+) kB", re.M)
_PREFIX: Final = re.compile(r"^(?:Error: |load of migration failed: [^:;]*: )")
_VARIES: Final = re.compile(r"0x[0-9a-fA-F]+|-?\b\d+\b|'[^']*'|\"[^\"]*\"|\b[0-9a-f]{5,}\b")


def open_qemu(name: str, *, seconds: float, memory: int) -> "QemuTarget":
    """The QEMU ``qemu:PATH``, a binary or a directory with ``qemu-system-riscv64``.

    ``seconds`` and bytes of ``memory`` are for one load.

    Raises:
        ValueError: there is none, or none whose machine is known.
    """
    return QemuTarget(Path(name.removeprefix("qemu:")), seconds=seconds, memory=memory)


class QemuTarget:
    """See `open_qemu`.  ``pid`` is the number of the process that loads, None where there is none."""

    name: Final = "QEMU"
    says: Final = ("ram",)

    def __init__(self, path: Path, *, seconds: float, memory: int) -> None:
        emulator = emulator_at(path)
        if SPIKE["arch"] not in emulator.commands:
            raise ValueError(f"{path}: no qemu-system-{SPIKE['arch']}")
        assert emulator.release is not None
        release = ".".join(map(str, emulator.release))
        if release not in RELEASES:
            raise ValueError(f"{path}: QEMU {release}, whose machine is not known")
        self.version: Final = emulator.version
        self._release: Final = release
        with_us = _DIES_WITH_US if shutil.which(_DIES_WITH_US[0]) else ()
        self._command: Final = (*with_us, *emulator.commands[SPIKE["arch"]])
        self._seconds: Final = seconds
        self._memory: Final = memory
        self._directory: Final = scratch()
        self._path: Final = Path(self._directory.name, "image.qcow2")
        self._image, self._offset = _image(self._path)
        self._alone: Final = AdapterTarget(f"qemu:{path}", seconds=_ALONE, memory=2 * memory)
        self._machine: Machine | None = None
        self._fd = -1
        # What the process has loaded, for as far as it may matter, and how often it was told to.
        self._before: Final[deque[bytes]] = deque(maxlen=_BEFORE)
        self._loads = self._written = self._most = 0
        self._last: tuple[bytes, Verdict] = (b"", Verdict({}, False))
        try:
            places = blocks(self._running())
            sizes = {name: sum(size for *_, size in places[name]) for name in places}
            self._zeros: Final = {name: bytes(size) for name, size in sizes.items()}
            self._blank: Final = _blank(sizes)
            self._reset: Final = self._after_reset(places)
        except (Ended, Silent, Refused, OSError) as error:
            self.close()
            raise ValueError(f"{path}: {error}") from error

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return self._machine.pid if self._machine is not None else None

    def predict(self, data: bytes) -> dict[str, Any]:
        """What the rules say of what it gets, as of `Target`."""
        return self._verdict(data).reply

    def run(self, data: bytes) -> dict[str, Any]:
        """See `Target`.

        ``cause`` of a refusal is what QEMU says without what varies.  What is not as predicted says
        "incoming": how a process of its own took it; or "loadvm", where that is another verdict,
        which then is the reply.  What ends the process, and not that of its own, says what it takes
        "before", in hexadecimal, for the same to happen again; None where it does not.
        """
        expected, lasting = self._verdict(data)
        if lasting or len(data) > LARGEST:
            return _told(self._alone.run(data), expected)
        reply = self._load(data, expected)
        if expected["outcome"] in ("skip", reply["outcome"]) and _agree(expected, reply):
            return reply
        again = _told(self._alone.run(data + bytes(ZEROS)), expected)
        if again["outcome"] == reply["outcome"]:
            again["incoming"] = "the same"
        elif reply["outcome"] in ("accept", "reject"):
            again["loadvm"] = said(reply)
        else:
            before = self._led_to(data, reply["outcome"])
            again = {**reply, "incoming": said(again), "before": before}
        # It may be the loads before that made the difference.
        self._end()
        return again

    def after(self, before: Sequence[bytes]) -> None:
        """See `Staying`."""
        self._end()
        for data in before:
            self._load(data, _UNTOLD)

    def close(self) -> None:
        """See `Target`."""
        self._end()
        self._alone.close()
        self._directory.cleanup()

    def _led_to(self, data: bytes, outcome: str) -> list[str] | None:
        """What has to be loaded before ``data`` for that outcome: at most one stream."""
        # It may be that of ``data`` itself, which was loaded again for its memory.
        for before in ([], *([each] for each in reversed(list(self._before)))):
            self.after(before)
            if self._load(data, _UNTOLD)["outcome"] == outcome:
                return [each.hex() for each in before]
        return None

    def _verdict(self, data: bytes) -> Verdict:
        if self._last[0] is not data:
            endless = len(data) <= LARGEST
            self._last = data, verdict(data, self._release, self._zeros, endless=endless)
        return self._last[1]

    def _after_reset(self, places: dict[str, list[Piece]]) -> dict[str, bytes]:
        """What is in RAM that was zero, and of which nothing is loaded."""
        machine = self._running()
        for stream in (self._blank, _PLAIN):
            self._loaded(machine, stream)
        contents = {}
        for name, pieces in places.items():
            parts = []
            for address, _, size in pieces:
                file = machine.directory / "part"
                machine.execute("pmemsave", val=address, size=size, filename=file.name)
                parts.append(file.read_bytes())
            contents[name] = b"".join(parts)
        return contents

    def _running(self) -> Machine:
        """The process, a new one if need be; raises `Ended`, `Silent`."""
        if self._loads >= LOADS:
            self._end()
        if self._machine is None:
            # What the one before has left of its image is not looked at.
            self._path.write_bytes(self._image)
            self._fd = os.open(self._path, os.O_RDWR)
            drive = f"if=none,id=disk,format=qcow2,cache=unsafe,file={self._path}"
            options = [*SPIKE["argv"], *_OPTIONS, "-drive", drive]
            self._machine = Machine(self._command, options, answer=self._seconds)
            self._loads = self._written = 0
            self._before.clear()
            self._machine.connect()
            self._most = _limit(self._machine.pid, self._memory) + self._memory
        return self._machine

    def _end(self) -> None:
        if self._machine is not None:
            self._machine.end()
            self._machine = None
            os.close(self._fd)

    def _load(self, data: bytes, expected: dict[str, Any]) -> dict[str, Any]:
        """The reply of the process that stays."""
        try:
            machine = self._running()
            self._before.append(data)
            reply = self._loaded(machine, data)
            if _peak(machine.pid) > self._most:
                self._end()
                return {"outcome": "memory", "why": f"it took more than {self._memory >> 20} MiB"}
            if reply["outcome"] == expected["outcome"] == "accept":
                reply["ram"] = self._memory_of(machine, data, expected["ram"])
            elif expected.get("rule", "").startswith("configuration."):
                # QEMU keeps what it has read of it, and takes it for that of the next stream.
                self._loaded(machine, self._blank)
            return _told(reply, expected)
        except Ended as ended:
            self._end()
            return {"outcome": "crash", "why": str(ended)}
        except Silent as silent:
            self._end()
            return {"outcome": "timeout", "why": f"loadvm: {silent} within {self._seconds:g} s"}
        except (Refused, OSError) as error:
            self._end()
            return {"outcome": "error", "why": str(error)}

    def _memory_of(self, machine: Machine, data: bytes, expected: dict[str, str]) -> dict[str, str]:
        """Digests of RAM where that was zero before ``data`` was loaded."""
        if not expected:
            return {}
        self._loaded(machine, self._blank)
        self._loaded(machine, data)
        found = memory_digests(machine, SPIKE["arch"])
        after = verdict(data, self._release, self._reset, endless=True).reply["ram"]
        # Who comes in from a source has not been reset.
        return expected if all(found.get(name) == after[name] for name in after) else found

    def _loaded(self, machine: Machine, data: bytes) -> dict[str, Any]:
        """Whether it loads; raises `Refused` where it has not come to that."""
        os.pwrite(self._fd, data.ljust(self._written, b"\0"), self._offset)
        self._written = len(data)
        self._loads += 1
        told = machine.human(f"loadvm {_TAG}").replace("\r", "").strip()
        if not _ERROR.search(told):
            return {"outcome": "accept"}
        if _NOT_BEGUN.search(told):
            raise Refused(told)
        return {"outcome": "reject", "class": "malformed", "detail": told.replace("\n", "; ")}


def _agree(expected: dict[str, Any], reply: dict[str, Any]) -> bool:
    return bool("ram" not in reply or reply["ram"] == expected.get("ram"))


def _told(reply: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """A reply with the ``cause`` of a refusal, and of the blocks that are expected."""
    reply = {key: value for key, value in reply.items() if key != "id"}
    if "detail" in reply:
        first = _PREFIX.sub("", reply["detail"]).partition(";")[0]
        reply["cause"] = _VARIES.sub("_", first)
    if "ram" in reply:
        reply["ram"] = {name: reply["ram"].get(name) for name in expected.get("ram", ())}
    return reply


def _limit(pid: int, memory: int) -> int:
    """Have a process reserve not much more than so many bytes more; the peak of its memory so far."""
    pages = int(Path("/proc", str(pid), "statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + _RESERVED * memory
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
    resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    return _peak(pid)


def _peak(pid: int) -> int:
    """The most bytes of memory that a process had."""
    found = _PEAK.search(Path("/proc", str(pid), "status").read_text())
    return int(found[1]) << 10 if found else 0


def _image(path: Path) -> tuple[bytes, int]:
    """A disk image with a snapshot, and where in it its VM state of `LARGEST` bytes is."""
    cluster = 1 << _CLUSTER_BITS
    head = b"QFI\xfb" + b"".join(
        number.to_bytes(size)
        for number, size in (
            # Version, no backing file, clusters, size of the disk, no encryption;
            *((3, 4), (0, 8), (0, 4), (_CLUSTER_BITS, 4), (cluster, 8), (0, 4)),
            # the tables of clusters and of reference counts, no snapshots;
            *((1, 4), (3 * cluster, 8), (cluster, 8), (1, 4), (0, 4), (0, 8)),
            # no features, reference counts of 2^4 bits, length of this.
            *((0, 24), (4, 4), (104, 4)),
        )
    )
    counts = b"\0\1" * 4
    parts = (head, (2 * cluster).to_bytes(8), counts, b"")
    path.write_bytes(b"".join(part.ljust(cluster, b"\0") for part in parts))
    state = secrets.token_bytes(LARGEST)
    with Image(path, writable=True) as image:
        writer = image.write_state(_TAG)
        writer.write(0, state)
        writer.commit()
    whole = path.read_bytes()
    offset = whole.index(state)
    return whole[:offset] + bytes(LARGEST) + whole[offset + LARGEST :], offset


def _blank(blocks: dict[str, int]) -> bytes:
    """A stream that has all pages of the blocks zero."""
    wire = Wire().header().machine().put(_NO_CAPABILITIES, "capabilities")
    wire.section(1, 2, b"ram", 0, 4)
    sizes = {_short(name): size for name, size in blocks.items()}
    wire.blocks(**sizes)
    for name, size in blocks.items():
        for at in range(0, size, 4096):
            wire.page(at | 2, name.encode())
    wire.end_of_section().footer(2).again(3, 2, "end").end_of_section().footer(2)
    return bytes(wire.eof().data)


def _short(name: str) -> str:
    """As `Wire` calls a block."""
    return {"riscv.spike.ram": "main", "riscv.spike.mrom": "rom"}.get(name, name)
