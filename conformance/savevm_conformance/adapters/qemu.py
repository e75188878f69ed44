"""A QEMU, or our own emulated machine, over QMP: loads streams, writes them, and passes them on.

``python -m savevm_conformance.adapters.qemu PATH``, where PATH is a binary ``qemu-system-<arch>`` or
a directory with such; without PATH it is our own, ``savevm machine``.

Every case has a machine of its own in a process of its own, and nothing of it is left behind.
"""

import ast
import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import savevm
from savevm_conformance.processes import descendants
from savevm_conformance.protocol import CLASSES
from savevm_conformance.protocol.serve import Role, serve
from savevm_spec.rules import rules

__all__ = ["OURS", "Emulator", "Machine", "emulator_at", "serve_emulator"]

# Seconds: for a machine to start, for an answer of its monitor, for a migration from when its input
# has ended, for one in whole, and for a guest to run.
START: Final = 15.0
ANSWER: Final = 5.0
QUIET: Final = 5.0
WHOLE: Final = 12.0
MOMENT: Final = 0.1
# Lines of what a process has said that are told, and bytes of each.
_LINES: Final = 4
_TOLD: Final = 400

_MONITOR: Final = ("-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control")
_SILENT: Final = ("-S", "-nodefaults", "-display", "none", "-accel", "tcg")
_INCOMING: Final = ("-incoming", "defer")
_QTEST: Final = (
    *("-chardev", "socket,id=qtest,path=qtest,server=on,wait=off"),
    *("-qtest", "chardev:qtest", "-qtest-log", "none"),
)
# Where a target page has another size than these, or one that is only known at run time, digests
# of RAM are not told.
_PAGE: Final = 4096
_ARCHES: Final = ("i386", "x86_64", "riscv32", "riscv64", "ppc", "ppc64", "s390x", "sh4", "xtensa")
_BY_ERRNO: Final = {os.strerror(getattr(errno, name)): kind for name, kind in CLASSES.items()}
_FAILED: Final = re.compile(
    r"(?:load of migration failed|loadvm failed[^:]*|error while loading the machine): (.*)"
)
# What our own says of a stream: where it is wrong, and which rule that breaks.
_RULE: Final = re.compile(
    r"error while loading the machine: offset (\d+)"
    r"(?:, section ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"))?: .*\[([\w.-]+)\]$",
    re.M,
)
_REGION: Final = re.compile(
    r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:ram|rom)\): (\S+)(?: @([0-9a-f]{16}))?",
    re.M,
)
_BLOCK: Final = re.compile(r"^ *(\S+) +\d+ [KMG]iB +0x[0-9a-f]+ +0x([0-9a-f]+)", re.M)


class Refused(Exception):
    """A command that the monitor answers with an error."""


class Silent(Exception):
    """A monitor that does not answer in time."""


class Ended(Exception):
    """A process that has ended: ``code`` is its exit code, ``signal`` the name of what killed it.

    ``starting``: before it took a command.
    """

    def __init__(self, code: int, said: str, *, starting: bool = False) -> None:
        self.starting: Final = starting
        # A shell in between has exit code 128 + N for signal N.
        number = -code if code < 0 else code - 128
        self.signal: Final = signal.Signals(number).name if number in signal.valid_signals() else ""
        self.code: Final = code
        self.said: Final = said
        how = f"killed by {self.signal}" if self.signal else f"ended with exit code {code}"
        super().__init__(f"{how}: {_told(said)}" if said else how)


def _told(said: str) -> str:
    """Lines, in one for people."""
    return "; ".join(line[:_TOLD] for line in said.splitlines())


@dataclass(frozen=True, slots=True)
class Emulator:
    """A program, or several with a name for each architecture; ``release`` None: of all of them."""

    name: str
    version: str
    release: tuple[int, ...] | None
    commands: dict[str, tuple[str, ...]]
    # The error number of a QEMU tells which of its functions failed, not what is wrong.
    says: tuple[str, ...] = ("ram",)
    url: str | None = None

    def unfit(self, machine: dict[str, Any] | None) -> str | None:
        """Why it is not the machine of a case, or None if it is."""
        if machine is None:
            return "a stream of no machine"
        if machine["arch"] not in self.commands:
            return f"no emulator of {machine['arch']}"
        since, until = machine["since"], machine.get("until")
        if self.release is not None and (
            self.release < _release(since) or (until and _release(until) < self.release)
        ):
            span = f"{since} to {until}" if until else f"{since} and later"
            return f"a machine of QEMU {span}, and this is {self.version}"
        return None


OURS: Final = Emulator(
    "savevm machine",
    savevm.__version__,
    None,
    {"riscv64": (sys.executable, "-m", "savevm.cli", "machine")},
    ("class", "offset", "section", "rule", "ram"),
)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def emulator_at(path: Path) -> Emulator:
    """The QEMU at a path, of a binary or of a directory with some.

    Raises:
        ValueError: there is none.
    """
    binaries = sorted(path.glob("qemu-system-*")) if path.is_dir() else [path]
    commands: dict[str, tuple[str, ...]] = {
        binary.name.removeprefix("qemu-system-"): (str(binary.absolute()),)
        for binary in binaries
        if binary.name.startswith("qemu-system-") and os.access(binary, os.X_OK)
    }
    if not commands:
        raise ValueError(f"{path}: no qemu-system-*")
    first = next(iter(commands.values()))
    said = subprocess.run(
        [*first, "--version"], capture_output=True, text=True, errors="replace", timeout=START
    ).stdout
    found = re.search(r"version (\d+\.\d+[.\d]*)", said)
    if found is None:
        raise ValueError(f"{first[0]} --version says {said[:80]!r}")
    return Emulator("QEMU", found[1], _release(found[1]), commands, url="https://www.qemu.org")


class Machine:
    """A process in a directory of its own, with its monitor; ``end`` it.

    ``answer``: seconds that its monitor has for an answer.
    """

    def __init__(
        self, command: Sequence[str], options: Sequence[str], *, answer: float = ANSWER
    ) -> None:
        self.argv: Final = [*command, *options]
        self._answer: Final = answer
        self.directory: Final = Path(tempfile.mkdtemp(prefix="savevm-qemu-"))
        self._held = b""
        self._events: list[dict[str, Any]] = []
        self._number = 0
        self._monitor, theirs = socket.socketpair()
        # Its own Python, if it is one, finds what this one does, from another directory too.
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
        try:
            with theirs, (self.directory / "said").open("wb") as said:
                # In the group of this process, so that both end when that is ended.
                self._process = subprocess.Popen(
                    [*self.argv, *_MONITOR],
                    stdin=theirs.fileno(),
                    stdout=said,
                    stderr=said,
                    cwd=self.directory,
                    env=dict(os.environ, LC_ALL="C", PYTHONPATH=paths),
                )
        except OSError:
            self._monitor.close()
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def connect(self) -> None:
        """Make it take commands, and tell of migrations; raises `Ended`, `Silent`."""
        if "QMP" not in self._message(time.monotonic() + START):
            raise Silent("its monitor does not speak QMP")
        self.execute("qmp_capabilities")
        events = [{"capability": "events", "state": True}]
        self.execute("migrate-set-capabilities", capabilities=events)

    def execute(self, command: str, **arguments: object) -> Any:
        """What the monitor returns; raises `Refused`, `Ended`, `Silent`."""
        self._number += 1
        request = {"execute": command, "arguments": arguments, "id": self._number}
        # That it has ended shows when reading.
        with contextlib.suppress(OSError):
            self._monitor.sendall(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + self._answer
        while True:
            message = self._message(deadline)
            if message.get("id") != self._number:
                self._events.append(message)
            elif "error" in message:
                raise Refused(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def human(self, command: str) -> str:
        """What the human monitor prints."""
        return str(self.execute("human-monitor-command", **{"command-line": command}))

    def migrated(self, fed: Path | None = None) -> bool:
        """Wait until a migration is over: whether it is completed.

        ``fed`` is a file that is there when all input was handed over.  Raises `Ended`, and
        `Silent` if it does not get on.
        """
        deadline = time.monotonic() + WHOLE
        while True:
            while self._events:
                event = self._events.pop(0)
                status = event["data"].get("status") if event.get("event") == "MIGRATION" else None
                if status in ("completed", "failed", "cancelled"):
                    return bool(status == "completed")
            if fed is not None and fed.exists():
                deadline, fed = min(deadline, time.monotonic() + QUIET), None
            now = time.monotonic()
            if now >= deadline:
                raise Silent("its migration does not get on")
            with contextlib.suppress(Silent):
                self._events.append(self._message(min(deadline, now + 0.1)))

    def wait(self) -> Ended:
        """Wait for its end, which is near; raises `Silent` if it is not."""
        try:
            return Ended(self._process.wait(ANSWER), self.said(), starting=self._number == 0)
        except subprocess.TimeoutExpired:
            raise Silent("it does not end") from None

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def said(self) -> str:
        """The last of what it has said, without what it merely warns of."""
        text = (self.directory / "said").read_text("utf-8", "replace")
        lines = [re.sub(r"^\S*qemu\S*: |^savevm machine: ", "", line) for line in text.splitlines()]
        lines = [line.strip() for line in lines if line.strip() and "warning: " not in line]
        return "\n".join(lines[-_LINES:])

    def end(self) -> None:
        """Leave nothing of it."""
        for pid in [*reversed(descendants(self._process.pid)), self._process.pid]:
            # What has been waited for has no number any more.
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._monitor.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _message(self, deadline: float) -> dict[str, Any]:
        """The next message; raises `Ended`, and `Silent` when there is none until ``deadline``."""
        while b"\n" not in self._held:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Silent("its monitor does not answer")
            self._monitor.settimeout(left)
            try:
                piece = self._monitor.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                piece = b""
            if not piece:
                raise self.wait()
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


# Memory

# Physical address, offset in its block, and size of a part of a block.
Piece = tuple[int, int, int]
# Pages by address in their block, and those by its name.
Memory = dict[str, dict[int, bytes]]


def blocks(machine: Machine) -> dict[str, list[Piece]]:
    """Where the RAM blocks are that are mapped whole."""
    mapped: dict[str, set[Piece]] = {}
    tree = machine.human("info mtree -f").replace("\r", "")
    views = re.split(r"\n(?=FlatView )", tree)
    memory = [view for view in views if 'AS "memory"' in view] or [tree]
    for start, last, name, offset in _REGION.findall(memory[0]):
        address = int(start, 16)
        piece = (address, int(offset or "0", 16), int(last, 16) + 1 - address)
        mapped.setdefault(name, set()).add(piece)
    sizes = {name: int(size, 16) for name, size in _BLOCK.findall(machine.human("info ramblock"))}
    whole: dict[str, list[Piece]] = {}
    for name, found in mapped.items():
        pieces: list[Piece] = []
        end = 0
        for address, offset, size in sorted(found, key=lambda piece: piece[1]):
            # What is mapped twice is read once.
            if offset == end:
                pieces.append((address, offset, size))
                end += size
        if end == sizes.get(name, end if not sizes else None):
            whole[name] = pieces
    return whole


def memory_digests(machine: Machine, arch: str) -> dict[str, str]:
    """The digest of each RAM block that can be read, by its name, as in a transcript."""
    if arch not in _ARCHES:
        return {}
    return {name: _digest(_read(machine, pieces)) for name, pieces in blocks(machine).items()}


def _read(machine: Machine, pieces: list[Piece]) -> Iterator[tuple[int, bytes]]:
    memory = machine.directory / "memory"
    for address, offset, size in pieces:
        machine.execute("pmemsave", val=address, size=size, filename=memory.name)
        with memory.open("rb") as file:
            for at in range(offset, offset + size, _PAGE):
                yield at, file.read(_PAGE)


def _digest(pages: Iterable[tuple[int, bytes]]) -> str:
    digest = hashlib.sha256()
    for at, page in pages:
        if any(page):
            digest.update(at.to_bytes(8, "big") + page)
    return digest.hexdigest()


# Roles


class Stable:
    """The machines of an emulator.  One that waits for a stream is started before it is needed."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator: Final = emulator
        self._spare: Machine | None = None

    @contextlib.contextmanager
    def machine(self, case: dict[str, Any], options: Sequence[str]) -> Iterator[Machine]:
        """The machine of a case, started and stopped, for the length of the block.

        Raises `Ended` if it does not start.
        """
        of = case["machine"]
        command = self._emulator.commands[of["arch"]]
        options = (*of["argv"], *_SILENT, *options)
        spare, self._spare = self._spare, None
        if spare is not None and (spare.argv != [*command, *options] or not spare.running()):
            spare.end()
            spare = None
        machine = spare or Machine(command, options)
        try:
            machine.connect()
            yield machine
        finally:
            machine.end()
        if options[-len(_INCOMING) :] == _INCOMING:
            self._spare = Machine(command, options)

    def end(self) -> None:
        """Leave nothing running."""
        if self._spare is not None:
            self._spare.end()
            self._spare = None


def _rejected(said: str) -> dict[str, Any] | None:
    """The reply for what is said of a stream that was refused; None if nothing of that kind is."""
    if (failed := _FAILED.search(said)) is None:
        return None
    reply: dict[str, Any] = {"outcome": "reject", "class": "malformed", "detail": _told(said)}
    if ours := _RULE.search(said):
        rule = rules()[ours[3]]
        section = ast.literal_eval(ours[2]) if ours[2] else None
        reply |= {"rule": rule.id, "offset": int(ours[1]), "section": section}
        reply["class"] = CLASSES[rule.errno or "EINVAL"]
    for words, kind in _BY_ERRNO.items():
        if failed[1].startswith(words):
            reply["class"] = kind
    return reply


def _ended(ended: Ended) -> dict[str, Any]:
    """The reply for a machine that has ended while it loaded, or behind it."""
    rejected = None if ended.signal else _rejected(ended.said)
    return rejected or {"outcome": "crash", "why": str(ended)}


def _load(machine: Machine, stream: str) -> dict[str, Any] | None:
    """Load a stream: the reply if that fails in any way, else None."""
    fed = machine.directory / "fed"
    feed = f"exec:cat {shlex.quote(stream)}; : > {shlex.quote(str(fed))}"
    try:
        machine.execute("migrate-incoming", uri=feed)
        if machine.migrated(fed):
            return None
        return _ended(machine.wait())
    except Ended as ended:
        return _ended(ended)
    except Silent:
        since = f"{QUIET:g} s after the end of the stream" if fed.exists() else f"in {WHOLE:g} s"
        return {"outcome": "timeout", "why": f"neither loaded nor refused {since}: {_how(machine)}"}


def _how(machine: Machine) -> str:
    """How a machine is that does not get on."""
    try:
        status = machine.execute("query-migrate").get("status", "none")
    except (Silent, Refused):
        return "its monitor does not answer"
    except Ended as ended:
        return str(ended)
    return f'its migration is "{status}", its monitor answers'


def _save(machine: Machine, output: str) -> None:
    """Migrate into a file, of which there is nothing before it is whole.

    Raises `Refused`, `Ended`, `Silent`.
    """
    Path(output).unlink(missing_ok=True)
    part, whole = shlex.quote(f"{output}.part"), shlex.quote(output)
    machine.execute("migrate", uri=f"exec:cat > {part} && mv {part} {whole}")
    if not machine.migrated():
        why = machine.execute("query-migrate").get("error-desc", machine.said())
        raise Refused(f"migrate: {why}")
    # It may end before its answer gets through.
    with contextlib.suppress(Ended):
        machine.execute("quit")
    if (ended := machine.wait()).code != 0:
        raise ended
    deadline = time.monotonic() + ANSWER
    while not Path(output).exists():
        if time.monotonic() > deadline:
            raise Refused(f"migrate: completed, but {output} was not written")
        time.sleep(0.005)


def _pages(block: dict[str, Any]) -> dict[int, bytes]:
    """The pages of a block of a state that are not all zero, by address in order."""
    pages = {}
    for page in block["pages"]:
        whole = (
            bytes.fromhex(page["hex"]) if "hex" in page else bytes([page["byte"]]) * page["size"]
        )
        for at in range(
            page["address"], page["address"] + page.get("count", 1) * len(whole), _PAGE
        ):
            begin = (at - page["address"]) % len(whole)
            pages[at] = whole[begin : begin + _PAGE]
    return {at: pages[at] for at in sorted(pages) if any(pages[at])}


def _images(wanted: Memory, places: dict[str, Piece], directory: Path) -> list[str]:
    """Options that have blocks filled at the start, from files in ``directory``."""
    options = []
    for number, (name, pages) in enumerate(wanted.items()):
        address, _, size = places[name]
        file = directory / f"{number}.bin"
        file.write_bytes(b"".join(pages.get(at, bytes(_PAGE)) for at in range(0, size, _PAGE)))
        options += ["-device", f"loader,file={file},addr={address:#x},force-raw=on"]
    return options


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _poke(machine: Machine, wanted: Memory, places: dict[str, Piece]) -> None:
    """Fill blocks of a machine with ``_QTEST``; raises `Refused`, `Silent`."""
    with _opened(machine.directory) as directory, socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(ANSWER)
        try:
            # The name of a socket has 108 bytes at most, and directories can lie deep.
            wire.connect(f"/proc/self/fd/{directory}/qtest")
            with wire.makefile("rwb") as both:
                for line in _strokes(wanted, places):
                    both.write(line.encode() + b"\n")
                    both.flush()
                    if (said := both.readline()) != b"OK\n":
                        raise Refused(f"qtest: {line[:40]}: {said[:40]!r}")
        except TimeoutError:
            raise Silent("qtest does not answer") from None


def _strokes(wanted: Memory, places: dict[str, Piece]) -> Iterator[str]:
    for name, pages in wanted.items():
        address, _, size = places[name]
        yield f"memset {address:#x} {size:#x} 0x00"
        for at, page in pages.items():
            yield f"write {address + at:#x} {_PAGE:#x} 0x{page.hex()}"


def _unbuildable(state: dict[str, Any]) -> str | None:
    """Why no machine can be brought into a state, if that is plain from it."""
    if state["dialect"] != "v3-configuration":
        return f"it does not write {state['dialect']}"
    if state["page_size"] != _PAGE:
        return f"it has pages of {_PAGE} bytes"
    if state["devices"]:
        return "the state of its devices is its own"
    return None


def _roles(emulator: Emulator, stable: Stable) -> dict[str, Role]:
    def loader(case: dict[str, Any]) -> dict[str, Any]:
        with stable.machine(case, _INCOMING) as machine:
            if (failed := _load(machine, case["stream"])) is not None:
                return failed
            return {"outcome": "accept", "ram": memory_digests(machine, case["machine"]["arch"])}

    def peer(case: dict[str, Any]) -> dict[str, Any]:
        with stable.machine(case, _INCOMING) as machine:
            # Now this says: when it is loaded, go on if it was running.
            machine.execute("cont")
            if (failed := _load(machine, case["stream"])) is not None:
                return failed
            if machine.execute("query-status")["running"]:
                time.sleep(MOMENT)
                machine.execute("stop")
            _save(machine, case["output"])
            return {"outcome": "written"}

    def writer(case: dict[str, Any]) -> dict[str, Any]:
        state = json.loads(Path(case["state"]).read_text("utf-8"))
        if (why := _unbuildable(state)) is not None:
            return {"outcome": "skip", "why": why}
        wanted = {block["name"]: _pages(block) for block in state["ram"]}
        with stable.machine(case, ()) as machine:
            places = {name: at[0] for name, at in blocks(machine).items() if len(at) == 1}
        if missing := wanted.keys() - places:
            return {"outcome": "skip", "why": f"it has no block {min(missing)!r} to write to"}
        is_qemu = emulator.release is not None
        with tempfile.TemporaryDirectory(prefix="savevm-qemu-") as directory:
            # What is loaded at the start wins over what ours has there itself, but not in QEMU.
            options = _QTEST if is_qemu else _images(wanted, places, Path(directory))
            with stable.machine(case, options) as machine:
                if is_qemu:
                    _poke(machine, wanted, places)
                there = memory_digests(machine, case["machine"]["arch"])
                for name, pages in wanted.items():
                    if there.get(name) != _digest(pages.items()):
                        return {"outcome": "skip", "why": f"{name!r} cannot be written"}
                _save(machine, case["output"])
        return {"outcome": "written"}

    def guarded(role: Role, given: str) -> Role:
        def answer(case: dict[str, Any]) -> dict[str, Any]:
            if (why := emulator.unfit(case.get("machine"))) is not None:
                return {"outcome": "skip", "why": why}
            # QEMU takes a command that gives nothing for a stream that is yet to come.
            Path(case[given]).open("rb").close()
            try:
                return role(case)
            except Ended as ended:
                if ended.signal or not ended.starting:
                    return {"outcome": "crash", "why": str(ended)}
                why = f"it does not start this machine: {_told(ended.said)}"
                return {"outcome": "skip", "why": why}
            except Silent as silent:
                return {"outcome": "timeout", "why": str(silent)}
            except Refused as refused:
                return {"outcome": "error", "why": str(refused)}

        return answer

    return {
        "loader": guarded(loader, "stream"),
        "writer": guarded(writer, "state"),
        "peer": guarded(peer, "stream"),
    }


def serve_emulator(emulator: Emulator) -> None:
    """Speak the protocol for an emulator."""
    # Those that crash do so at once.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    stable = Stable(emulator)
    try:
        serve(
            emulator.name,
            emulator.version,
            _roles(emulator, stable),
            says=emulator.says,
            url=emulator.url,
        )
    finally:
        stable.end()


if __name__ == "__main__":
    try:
        serve_emulator(emulator_at(Path(sys.argv[1])) if len(sys.argv) > 1 else OURS)
    except ValueError as error:
        sys.exit(str(error))
