"""``savevm machine`` as a process, driven as a real QEMU is: by the same script, with the same options.

SAVEVM_QEMUS names the QEMUs to compare with, as for the tests of pairs; else the one on PATH.
"""

import asyncio
import contextlib
import json
import os
import pty
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest
from qemu.qmp import ExecuteError, QMPClient
from test_tls import Make, authority, make  # noqa: F401
from wires import no_hang  # noqa: F401

from savevm.cli.machine import machine
from savevm.cli.processes import OURS, Kind, find_qemus
from savevm.machine import guests
from savevm.machine.spike import Spike
from savevm.migration.settings import Settings
from savevm.monitor.emulator import Emulator
from savevm.monitor.qmp import CommandError
from savevm.monitor.values import JsonError, Values
from savevm.qcow2 import Image
from savevm.transport import send_fd

QEMUS = find_qemus([at for at in os.environ.get("SAVEVM_QEMUS", "").split(os.pathsep) if at])
NO_QEMU = "no qemu-system-riscv64 on PATH or in SAVEVM_QEMUS: not held against a real QEMU"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

SWEEPER = str(Path(guests.__file__).with_name("sweeper.elf"))
MACHINE = ("-M", "spike", "-m", "16M", "-bios", "none", "-nodefaults", "-display", "none")
MONITOR = ("-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control")
RAM = 0x8000_0000


def with_qemus(test: Callable[..., None]) -> Callable[..., None]:
    """Runs ``test`` for each real QEMU; a loud skip where there is none."""
    skip = pytest.param(None, marks=pytest.mark.skip(reason=NO_QEMU), id="no QEMU")
    every = [pytest.param(kind, id=kind.name) for kind in QEMUS] or [skip]
    return pytest.mark.parametrize("qemu", every)(test)


class Driven:
    """A machine of either kind, commanded by QEMU's own QMP library."""

    def __init__(self, kind: Kind, directory: Path, *options: str) -> None:
        ours, theirs = socket.socketpair()
        self.said = directory / f"said-{os.urandom(4).hex()}"
        with theirs, self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [*kind.argv, *MACHINE, *MONITOR, *options],
                stdin=theirs.fileno(),
                stdout=said,
                stderr=said,
                cwd=directory,
                env=ENVIRONMENT,
            )
        self.socket = ours.dup()
        self._runner = asyncio.Runner()
        self._client = QMPClient()
        self._runner.run(self._client.connect(ours))

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        return self._runner.run(self._client.execute(command, arguments))

    def fails(self, command: str, arguments: dict[str, Any] | None = None) -> tuple[str, str]:
        """The class and the text of the error that a command gives."""
        with pytest.raises(ExecuteError) as caught:
            self.execute(command, arguments)
        return caught.value.error_class, str(caught.value)

    def human(self, line: str) -> str:
        answer = self.execute("human-monitor-command", {"command-line": line})
        assert isinstance(answer, str)
        return answer

    def events(self) -> list[tuple[str, Any]]:
        """Those since the last call, without their time."""
        return [(e["event"], e.get("data")) for e in self._client.events.clear()]

    def migration(self) -> dict[str, Any]:
        while True:
            answer: dict[str, Any] = self.execute("query-migrate")
            if answer.get("status") in ("completed", "failed", "cancelled"):
                return answer
            time.sleep(0.01)

    def quit(self) -> int:
        self.execute("quit")
        return self.process.wait()

    def __enter__(self) -> "Driven":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.close()
        with contextlib.suppress(Exception):
            self._runner.run(self._client.disconnect())
        self._runner.close()


@pytest.fixture(name="ours", scope="module")
def stopped_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """One that was never started, for tests that leave it as it is."""
    with Driven(OURS, tmp_path_factory.mktemp("ours"), "-kernel", SWEEPER, "-S") as driven:
        yield driven
        assert driven.quit() == 0
        assert driven.said.read_text() == ""


def run(*arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*OURS.argv, *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=directory,
        env=ENVIRONMENT,
        check=False,
    )


def test_a_client_that_waits_is_left_without_a_complaint(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "qmp"))
        there.listen()
        place = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        process = subprocess.Popen(
            [*OURS.argv, *MACHINE, "-qmp", "unix:qmp", "-incoming", place],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
        )
        client = there.accept()[0]
        with contextlib.suppress(BrokenPipeError):
            client.sendall(b'{"execute": "qmp_capabilities"}')
        said = process.communicate(timeout=60)[1]
        client.close()
    assert process.returncode == 1
    assert said.count("\n") == 1
    assert "Address already in use" in said


# Against real QEMUs


QUERIES = (
    "query-version",
    "query-name",
    "query-uuid",
    "query-target",
    "query-kvm",
    "query-status",
    "query-cpus-fast",
    "query-machines",
    "query-current-machine",
    "query-memory-size-summary",
    "query-memory-devices",
    "query-memdev",
    "query-iothreads",
    "query-jobs",
    "query-mice",
    "query-block",
    "query-named-block-nodes",
    "query-chardev",
    "query-commands",
    "query-migrate",
    "query-migrate-parameters",
    "query-migrate-capabilities",
)
# What older releases say that 11.1 no longer does.
GONE = {
    "arch",
    "singlestep",
    "compress-level",
    "compress-threads",
    "compress-wait-thread",
    "decompress-threads",
    "block-incremental",
    "skipped",
    "downtime-bytes",
}
# Only some releases have them, or machines of some kind.
SOME = {"is-default", "default-ram-id", "default-cpu-type"}


def shape(value: object) -> object:
    """Keys and types."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if type(value) in (int, float) else type(value).__name__


def agree(ours: Any, theirs: Any, release: str, where: str) -> None:
    """What both say has one shape, and what only one does is known to be so."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        missing = set(theirs) - set(ours) - SOME
        added = {key for key in set(ours) - set(theirs) - SOME if not key.startswith("x-")}
        assert missing <= GONE, where
        assert release != "11.1" or not missing | added, where
        for key in set(ours) & set(theirs):
            agree(ours[key], theirs[key], release, f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and ours and theirs:
        agree(ours[0], theirs[0], release, f"{where}[]")
    else:
        # A list that is empty on one side says nothing of its elements.
        assert type(ours) is type(theirs), where


@with_qemus
def test_queries_have_the_shape_of_qemus(qemu: Kind, ours: Driven, tmp_path: Path) -> None:
    with Driven(qemu, tmp_path, "-kernel", SWEEPER, "-S") as driven:
        theirs = {query: driven.execute(query) for query in QUERIES}
    own = {query: ours.execute(query) for query in QUERIES}
    theirs["query-machines"] = [m for m in theirs["query-machines"] if m["name"] == "spike"]
    if qemu.release == "5.2":
        # It has none unless one is made.
        theirs["query-memdev"] = own["query-memdev"]
    for query in QUERIES:
        agree(shape(own[query]), shape(theirs[query]), qemu.release, query)
    names = {query: {e["name"] for e in own[query]} for query in ("query-commands",)}
    assert (
        not names["query-commands"] - {e["name"] for e in theirs["query-commands"]} - {"query-jobs"}
    )
    if qemu.release == "11.1":
        capabilities = "query-migrate-capabilities"
        assert own[capabilities] == theirs[capabilities]
        parameters = own["query-migrate-parameters"]
        assert theirs["query-migrate-parameters"].items() <= parameters.items()


# Requests that are wrong, whose errors no release words differently.
WRONG: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("no-such-command", None),
    ("query-name", {"x": 1}),
    ("migrate", {"uri": 5}),
    ("migrate", {"uri": "fd:nowhere"}),
    # One of its own.
    ("migrate", {"uri": "fd:5"}),
    ("migrate-set-parameters", {"no-such-parameter": 1}),
    ("migrate-set-capabilities", None),
    ("memsave", None),
    ("memsave", {"val": 0, "size": 1, "filename": "/dev/null", "cpu-index": 9}),
    ("memsave", {"val": 0, "size": 16, "filename": "/dev/null"}),
    ("pmemsave", {"val": 0, "size": 1, "filename": "/nowhere/at/all"}),
    ("getfd", {"fdname": "x"}),
    ("closefd", {"fdname": "x"}),
    ("migrate-recover", {"uri": "tcp:127.0.0.1:0"}),
    ("qmp_capabilities", None),
)
# The same, but with words of their own.
REFUSED: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("migrate", None),
    ("migrate", {"uri": "carrier-pigeon:coop"}),
    ("migrate-incoming", {"uri": "tcp:127.0.0.1:0"}),
    ("migrate-set-parameters", {"max-bandwidth": "fast"}),
    ("migrate-set-parameters", {"downtime-limit": 2_000_001}),
    ("migrate-set-parameters", {"multifd-channels": 0}),
    ("migrate-set-capabilities", {"capabilities": 5}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "telepathy", "state": True}]}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "events"}]}),
    ("migrate-continue", {"state": "pre-switchover"}),
    ("migrate-start-postcopy", None),
    ("pmemsave", {"val": "x", "size": 1, "filename": "/dev/null"}),
)


@with_qemus
def test_errors_are_qemus(qemu: Kind, ours: Driven, tmp_path: Path) -> None:
    with Driven(qemu, tmp_path, "-kernel", SWEEPER, "-S") as theirs:
        for command, arguments in WRONG:
            assert ours.fails(command, arguments) == theirs.fails(command, arguments)
        for command, arguments in REFUSED:
            assert ours.fails(command, arguments)[0] == theirs.fails(command, arguments)[0]


# Each alone on its line.
LINES = (
    b'{"execute": "query-name"}{"execute": "query-name", "id": {"a": [1, null]}}',
    b"{'execute': 'query-name', 'id': 'it\\'s'}",
    b'{"execute":\n\n"query-name" }',
    b"[1]",
    b"5 ",
    b'{"execute": 5}',
    b'{"execute": "query-name", "arguments": []}',
    b'{"execute": "query-name", "other": 1}',
    b'{"exec-oob": "query-name"}',
    b"{}",
    b'{"execute": "query-name", "id": "\\u00e9\xc3\xa9"}',
)


@with_qemus
def test_the_protocol_is_qemus(qemu: Kind, tmp_path: Path) -> None:
    answers = []
    for kind in (OURS, qemu):
        with Driven(kind, tmp_path, "-S") as driven:
            path = tmp_path / "second"
            # A second monitor, without a library in between.
            extra = Driven(kind, tmp_path, "-S", "-qmp", f"unix:{path},server=on,wait=off")
            with extra, socket.socket(socket.AF_UNIX) as plain, plain.makefile("rb") as lines:
                plain.connect(str(path))
                greeting = json.loads(lines.readline())
                assert set(greeting) == {"QMP"}
                assert set(greeting["QMP"]) == {"version", "capabilities"}
                said = []
                for text in (
                    b'{"execute": "query-name"}',
                    b'{"execute": "qmp_capabilities"}',
                    *LINES,
                ):
                    plain.sendall(text + b"\n")
                    count = 2 if text is LINES[0] else 1
                    said += [json.loads(lines.readline()) for _ in range(count)]
                answers.append(said)
            driven.quit()
    assert answers[0] == answers[1]


def _life(driven: Driven) -> Iterator[object]:
    """What a machine says and does; a generator, so that a failure tells how far it was."""
    status = "query-status"
    for command in ("stop", "cont", "cont", "stop", "stop", "system_reset", "system_powerdown"):
        yield command, driven.execute(command), driven.execute(status)["status"]
    # Both tell of a reset in their own time.
    while not (events := driven.events()) or "POWERDOWN" not in dict(events):
        time.sleep(0.01)
    yield sorted(map(str, events))
    for line in (
        "info status",
        "stop",
        "cont",
        "info status",
        "",
        "info bogus",
        "bogus",
        "migrate",
    ):
        yield line, driven.human(line)
    yield [name for name, _ in driven.events()]


@with_qemus
def test_a_life_is_qemus(qemu: Kind, tmp_path: Path) -> None:
    lives = []
    for kind in (OURS, qemu):
        with Driven(kind, tmp_path, "-kernel", SWEEPER, "-S") as driven:
            lives.append(list(_life(driven)))
            assert driven.quit() == 0
    assert lives[0] == lives[1]


HUMAN = (
    "xp /4xw 0x1000",
    "xp /2xg 0x1000",
    "xp/5xb 0x1000",
    "xp /3dh 0x1000",
    "xp /2dg 0x1000",
    "xp /3ub 0x1000",
    "xp /4xw 0x80000000",
    "x /4xw 0x80000000",
    "xp /4xw 0",
    "xp",
    "p 1+2*3",
    "p (1+2)*3-0x10",
    "p/d 7-9",
    "print $nonsense",
    "cpu 3",
    "info uuid",
    "info memory_size_summary",
    "migrate_set_parameter nonsense 1",
    "migrate_set_capability nonsense on",
    "migrate_set_capability events maybe",
    "loadvm",
)


@with_qemus
def test_the_human_monitor_is_qemus(qemu: Kind, ours: Driven, tmp_path: Path) -> None:
    with Driven(qemu, tmp_path, "-kernel", SWEEPER, "-S") as theirs:
        for line in HUMAN:
            # Releases differ in how many digits an address has.
            own, other = (re.sub("(?m)^0{8}(?=.{8}:)", "", m.human(line)) for m in (ours, theirs))
            assert own == other, line


@with_qemus
def test_statistics_have_the_shape_of_qemus(qemu: Kind, tmp_path: Path) -> None:
    shapes = []
    for kind in (OURS, qemu):
        with Driven(kind, tmp_path, "-kernel", SWEEPER) as driven:
            states = [{"capability": "events", "state": True}]
            driven.execute("migrate-set-capabilities", {"capabilities": states})
            driven.execute("migrate", {"uri": f"exec:cat > {tmp_path / kind.release}.stream"})
            done = driven.migration()
            assert done["status"] == "completed"
            assert driven.execute("query-status")["status"] == "postmigrate"
            told = driven.events()
            statuses = [data["status"] for name, data in told if name == "MIGRATION"]
            # Older releases do not tell of "device".
            assert [s for s in statuses if s != "device"] == ["setup", "active", "completed"]
            shapes.append(shape(done))
    agree(*shapes, qemu.release, "query-migrate")


@with_qemus
def test_snapshots_are_exchanged_with_qemu(qemu: Kind, tmp_path: Path) -> None:
    path = _image(tmp_path)
    drive = ("-kernel", SWEEPER, "-drive", f"file={path},if=none")
    with Driven(OURS, tmp_path, *drive, "-S") as driven:
        driven.human(f"migrate_set_parameter x-release {qemu.release}")
        assert driven.human("savevm first") == ""
        driven.quit()
    with Driven(qemu, tmp_path, *drive, "-serial", "file:theirs", "-loadvm", "first") as driven:
        driven.execute("cont")
        while len((tmp_path / "theirs").read_bytes()) < 2:
            time.sleep(0.05)
        assert driven.human("savevm second") == ""
        driven.quit()
    letters = (tmp_path / "theirs").read_text()
    with Driven(OURS, tmp_path, *drive, "-serial", "file:ours", "-loadvm", "second") as driven:
        assert driven.execute("query-status")["status"] == "running"
        while not (tmp_path / "ours").read_bytes():
            time.sleep(0.05)
        driven.quit()
    assert letters.startswith("AB")
    # It may have printed one more behind the snapshot.
    assert (tmp_path / "ours").read_text()[0] in chr(ord(letters[-1]) + 1) + letters[-1]


# The machine


def test_memory_is_saved(ours: Driven, tmp_path: Path) -> None:
    code = Path(SWEEPER).read_bytes()
    physical, virtual, around = tmp_path / "p", tmp_path / "v", tmp_path / "a"
    ours.execute("pmemsave", {"val": RAM, "size": 64, "filename": str(physical)})
    ours.execute("memsave", {"val": RAM, "size": 64, "filename": str(virtual)})
    assert physical.read_bytes() == virtual.read_bytes()
    assert physical.read_bytes() in code
    ours.execute("pmemsave", {"val": RAM - 8192, "size": 8192 + 64, "filename": str(around)})
    assert around.read_bytes() == bytes(8192) + physical.read_bytes()


def test_memory_is_saved_to_who_reads(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    where = {"val": RAM - 4096, "size": 1 << 20, "filename": "fifo"}
    with Driven(OURS, tmp_path, "-S", "-qmp", "unix:monitor,server=on,wait=off") as driven:
        assert "No such device or address" in driven.fails("pmemsave", where)[1]
        client, lines = _connected(tmp_path / "monitor")
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        with client, lines, os.fdopen(reader, "rb") as fifo:
            client.sendall(b'{"execute": "qmp_capabilities"}')
            client.sendall(json.dumps({"execute": "pmemsave", "arguments": where}).encode())
            assert select.select([reader], [], [], 30)[0]
            # It does not fit, and others are served.
            assert driven.execute("query-status")["status"] == "prelaunch"
            os.set_blocking(reader, True)
            data = fifo.read()
            assert [json.loads(lines.readline()) for _ in range(2)] == 2 * [{"return": {}}]
    assert len(data) == 1 << 20
    assert not any(data[:4096])


def test_all_of_a_request_for_memory_is_bounded(ours: Driven, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    error, _ = ours.fails("pmemsave", {"val": 0, "size": (1 << 64) - 1, "filename": str(path)})
    assert error == "GenericError"
    assert os.stat(path).st_blocks * 512 <= 17 << 20
    assert "no more than" in ours.human("xp /999999999xg 0x80000000")


def test_without_standard_descriptors(tmp_path: Path) -> None:
    elf = str(Path(guests.__file__).with_name("arithmetic.elf"))
    argv = (*OURS.argv, *MACHINE, "-kernel", elf, "-serial", "stdio", "-monitor", "file:said")
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    assert (
        subprocess.run([*closed, *argv], cwd=tmp_path, env=ENVIRONMENT, check=False).returncode == 0
    )
    assert (tmp_path / "said").read_text().endswith("(qemu) ")


def test_power_off_ends_the_process(tmp_path: Path) -> None:
    elf = str(Path(guests.__file__).with_name("arithmetic.elf"))
    with Driven(OURS, tmp_path, "-kernel", elf, "-S", "-serial", "file:console") as driven:
        driven.execute("cont")
        assert driven.process.wait() == 0
    assert (tmp_path / "console").read_bytes()


def test_power_off_stops_the_machine_if_told_so(tmp_path: Path) -> None:
    elf = str(Path(guests.__file__).with_name("arithmetic.elf"))
    with Driven(OURS, tmp_path, "-kernel", elf, "-no-shutdown", "-S") as driven:
        driven.execute("cont")
        while driven.execute("query-status")["status"] != "shutdown":
            time.sleep(0.05)
        assert ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}) in driven.events()
        assert "Resetting the Virtual Machine is required" in driven.fails("cont")[1]
        driven.execute("system_reset")
        assert driven.execute("query-status")["status"] == "prelaunch"
        driven.execute("cont")
        assert ("RESUME", None) in driven.events()
        assert driven.quit() == 0


def test_no_reboot(tmp_path: Path) -> None:
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, "-no-reboot") as driven:
        driven.execute("system_reset")
        assert driven.process.wait() == 0


@with_qemus
def test_no_reboot_and_no_shutdown(qemu: Kind, tmp_path: Path) -> None:
    for kind in (OURS, qemu):
        options = ("-kernel", SWEEPER, "-no-reboot", "-no-shutdown")
        with Driven(kind, tmp_path, *options) as driven:
            driven.execute("system_reset")
            while driven.execute("query-status")["status"] != "shutdown":
                time.sleep(0.01)
            shutdown = {"guest": False, "reason": "host-qmp-system-reset"}
            assert driven.events()[-2:] == [("SHUTDOWN", shutdown), ("STOP", None)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(number: int, tmp_path: Path) -> None:
    place, pid = tmp_path / "qmp", tmp_path / "pid"
    options = ("-qmp", f"unix:{place},server=on,wait=off", "-pidfile", str(pid))
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, *options) as driven:
        assert int(pid.read_text()) == driven.process.pid
        driven.process.send_signal(number)
        assert driven.process.wait() == 0
        assert driven.said.read_text() == f"savevm machine: terminating on signal {number:d}\n"
    assert not place.exists()
    assert not pid.exists()


def test_time_that_counts_instructions_is_the_same_twice(tmp_path: Path) -> None:
    elf = str(Path(guests.__file__).with_name("arithmetic.elf"))
    seen = []
    for _ in range(2):
        done = run(
            *MACHINE, "-kernel", elf, "-icount", "shift=3", "-serial", "stdio", directory=tmp_path
        )
        assert done.returncode == 0
        seen.append(done.stdout)
    assert seen[0] == seen[1] != ""


# Migration


def test_descriptors_are_handed_over(tmp_path: Path) -> None:
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, "-S") as source:
        process = psutil.Process(source.process.pid)
        before = process.num_fds()
        reading, writing = os.pipe()
        send_fd(source.socket, writing)
        source.execute("getfd", {"fdname": "out"})
        assert process.num_fds() == before + 1
        source.execute("closefd", {"fdname": "out"})
        assert process.num_fds() == before
        send_fd(source.socket, writing)
        # It goes with a command that does not take it, and stays for the next.
        source.execute("query-name")
        assert "digit" in source.fails("getfd", {"fdname": "7"})[1]
        send_fd(source.socket, writing)
        source.execute("getfd", {"fdname": "out"})
        os.close(writing)
        with Driven(OURS, tmp_path, "-kernel", SWEEPER, "-S", "-incoming", "defer") as destination:
            send_fd(destination.socket, reading)
            os.close(reading)
            destination.execute("getfd", {"fdname": "in"})
            for own in range(3, 8):
                error = destination.fails("migrate-incoming", {"uri": f"fd:{own}"})[1]
                assert "has not been found" in error
            destination.execute("migrate-incoming", {"uri": "fd:in"})
            source.execute("migrate", {"uri": "fd:out"})
            assert source.migration()["status"] == "completed"
            while destination.execute("query-status")["status"] == "inmigrate":
                time.sleep(0.01)
            assert destination.execute("query-status")["status"] != "running"


def test_cont_and_stop_decide_what_comes_in(tmp_path: Path) -> None:
    for command, running in (("cont", True), ("stop", False)):
        place = f"unix:{tmp_path / command}"
        option = () if command == "stop" else ("-S",)
        with (
            Driven(OURS, tmp_path, "-kernel", SWEEPER) as source,
            Driven(OURS, tmp_path, "-kernel", SWEEPER, *option, "-incoming", place) as destination,
        ):
            assert destination.execute("query-status")["status"] == "inmigrate"
            destination.execute(command)
            # In plain Python it takes long to catch up with the guest.
            source.execute("migrate-set-parameters", {"downtime-limit": 10_000})
            source.execute("migrate", {"uri": place})
            assert source.migration()["status"] == "completed"
            while destination.execute("query-status")["status"] == "inmigrate":
                time.sleep(0.01)
            assert destination.execute("query-status")["running"] is running


def test_a_bad_stream_ends_who_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"QEVM\0\0\0\3" + bytes(100))
    done = run(*MACHINE, "-incoming", f"file:{tmp_path / 'bad'}", directory=tmp_path)
    assert done.returncode == 1
    assert "error while loading the machine: offset" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_stream_can_be_survived(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"not a stream")
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, "-incoming", "defer") as destination:
        arguments = {"uri": f"file:{tmp_path / 'bad'}", "exit-on-error": False}
        destination.execute("migrate-incoming", arguments)
        failed = destination.migration()
        assert failed["status"] == "failed"
        assert "error-desc" in failed
        # And tried again.
        with Driven(OURS, tmp_path, "-kernel", SWEEPER) as source:
            place = f"unix:{tmp_path / 'again'}"
            destination.execute("migrate-incoming", {"uri": place})
            source.execute("migrate-set-parameters", {"downtime-limit": 10_000})
            source.execute("migrate", {"uri": place})
            assert source.migration()["status"] == "completed"
        while destination.execute("query-status")["status"] == "inmigrate":
            time.sleep(0.01)


def test_cancelled(tmp_path: Path) -> None:
    with Driven(OURS, tmp_path, "-kernel", SWEEPER) as driven:
        driven.execute("migrate-set-parameters", {"max-bandwidth": 1000})
        driven.execute("migrate", {"uri": "exec:cat > /dev/null"})
        assert "in progress" in driven.fails("migrate", {"uri": "exec:cat > /dev/null"})[1]
        driven.execute("migrate_cancel")
        assert driven.migration()["status"] == "cancelled"
        assert driven.execute("query-status")["running"]
        # Nothing is left of it.
        driven.execute("migrate-set-parameters", {"max-bandwidth": 0})
        driven.execute("migrate", {"uri": "exec:cat > /dev/null"})
        assert driven.migration()["status"] == "completed"


def test_who_never_comes_does_not_keep_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, "-incoming", "file:fifo") as driven:
        assert driven.quit() == 0
    with Driven(OURS, tmp_path, "-kernel", SWEEPER) as driven:
        driven.execute("migrate", {"uri": "file:fifo"})
        driven.process.terminate()
        assert driven.process.wait() == 0


def test_a_migration_goes_on_while_nobody_asks(tmp_path: Path) -> None:
    with Driven(OURS, tmp_path, "-kernel", SWEEPER) as driven:
        for number in range(3):
            driven.execute("migrate", {"uri": f"exec:cat > /dev/null; > {number}"})
            while not (tmp_path / str(number)).exists():
                time.sleep(0.05)
            assert driven.migration()["status"] == "completed"
            driven.execute("cont")


def test_those_who_never_come_do_not_keep_others_away(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, "-S") as driven:
        for _ in range(40):
            driven.execute("migrate", {"uri": "file:fifo"})
            driven.execute("migrate_cancel")
            assert driven.migration()["status"] == "cancelled"
        driven.execute("migrate", {"uri": "exec:cat > /dev/null"})
        assert driven.migration()["status"] == "completed"


def test_over_tls(tmp_path: Path, make: Make) -> None:  # noqa: F811
    directory = make("server", "client")
    credentials = f"tls-creds-x509,id=tls0,dir={directory}"
    place = ("-incoming", "defer", "-object", credentials + ",endpoint=server")
    uses = {"tls-creds": "tls0", "downtime-limit": 10_000}
    with (
        Driven(OURS, tmp_path, "-kernel", SWEEPER) as source,
        Driven(OURS, tmp_path, "-kernel", SWEEPER, *place) as destination,
    ):
        made = {"qom-type": "tls-creds-x509", "id": "tls0", "endpoint": "client"}
        source.execute("object-add", made | {"dir": str(directory)})
        for machine in (source, destination):
            machine.execute("migrate-set-parameters", uses)
        destination.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
        address = destination.execute("query-migrate")["socket-address"][0]
        source.execute("migrate", {"uri": f"tcp:127.0.0.1:{address['port']}"})
        assert source.migration()["status"] == "completed"
        while destination.execute("query-status")["status"] == "inmigrate":
            time.sleep(0.01)
        source.execute("object-del", {"id": "tls0"})
        assert source.fails("object-del", {"id": "tls0"})[0] == "GenericError"


def test_channels_are_another_way_to_write_an_address(tmp_path: Path) -> None:
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, "-S") as driven:
        address = {"transport": "file", "filename": str(tmp_path / "stream"), "offset": 16}
        channels = [{"channel-type": "main", "addr": address}]
        driven.execute("migrate", {"channels": channels})
        assert driven.migration()["status"] == "completed"
        assert (tmp_path / "stream").read_bytes()[16:24] == b"QEVM\0\0\0\3"
        addresses: list[Any] = [{}, {"transport": "rdma"}, {"transport": []}]
        mains = [[{"channel-type": "main", "addr": address}] for address in addresses]
        for wrong in ([], [5], [{}], *mains):
            assert driven.fails("migrate", {"channels": wrong})[0] == "GenericError"
        assert driven.said.read_text() == ""


# Snapshots


def _image(directory: Path) -> Path:
    """An empty qcow2 image of 1 MiB, version 3, clusters of 64 KiB."""
    cluster = 1 << 16
    header = struct.pack(
        ">IIQIIQIIQQIIQ", 0x514649FB, 3, 0, 0, 16, 1 << 20, 0, 1, 3 * cluster, cluster, 1, 0, 0
    )
    header += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    table = struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0")
    block = (b"\0\1" * 4).ljust(cluster, b"\0")
    path = directory / "disk.qcow2"
    path.write_bytes(header.ljust(cluster, b"\0") + table + block + bytes(cluster))
    return path


def test_a_snapshot_is_gone_back_to(tmp_path: Path) -> None:
    path = _image(tmp_path)
    drive = ("-drive", f"file={path},if=none", "-serial", "file:console")
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, *drive) as driven:
        assert driven.human("info snapshots") == "There is no snapshot available.\r\n"
        console = tmp_path / "console"
        while not console.read_bytes():
            time.sleep(0.01)
        driven.events()
        assert driven.human("savevm begin") == ""
        assert [name for name, _ in driven.events()] == ["STOP", "RESUME"]
        printed = len(console.read_bytes())
        while len(console.read_bytes()) < printed + 2:
            time.sleep(0.01)
        driven.execute("stop")
        before = console.read_bytes()
        assert driven.human("loadvm begin") == ""
        driven.execute("cont")
        while len(console.read_bytes()) < len(before) + 1:
            time.sleep(0.01)
        assert console.read_bytes()[len(before)] == before[printed]
        assert driven.human("loadvm other").startswith("Error: Snapshot 'other' does not exist")
        assert re.search(r"begin +\S+ .iB \d{4}-", driven.human("info snapshots"))
        assert driven.human("savevm begin") == ""
        assert driven.human("savevm") == ""
        with Image(path, locked=False) as image:
            names = [snapshot.name for snapshot in image.snapshots()]
        assert names[0] == "begin"
        assert re.fullmatch(r"vm-\d{14}", names[1])
        assert driven.human("delvm begin") == ""
        assert driven.human("delvm begin") == ""
        driven.quit()
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, *drive, "-loadvm", names[1], "-S") as driven:
        assert driven.execute("query-status")["status"] == "prelaunch"
    with Image(path) as image:
        assert [snapshot.name for snapshot in image.snapshots()] == names[1:]


def test_a_broken_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"QFI\xfb" + bytes(200))
    done = run(*MACHINE, "-drive", "file=x", directory=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("savevm machine: -drive file=x: ")


# Those who are at the monitor


def test_several_clients(tmp_path: Path) -> None:
    place = tmp_path / "qmp"
    options = ("-qmp", f"unix:{place},server=on,wait=off", "-kernel", SWEEPER, "-S")
    with Driven(OURS, tmp_path, *options) as driven:
        clients = [_connected(place) for _ in range(3)]
        try:
            for client, lines in clients[:2]:
                client.sendall(b'{"execute": "qmp_capabilities"}\n')
                assert json.loads(lines.readline()) == {"return": {}}
            # One is in the middle of a command, and one leaves in the middle of another.
            clients[0][0].sendall(b'{"execute": "query-')
            clients[2][0].sendall(b'{"execute": "qmp_capa')
            clients[2][0].close()
            clients[2][1].close()
            driven.execute("cont")
            for _, lines in clients[:2]:
                event = json.loads(lines.readline())
                assert event["event"] == "RESUME"
                assert set(event["timestamp"]) == {"seconds", "microseconds"}
            clients[0][0].sendall(b'status"}')
            assert json.loads(clients[0][1].readline())["return"]["running"]
        finally:
            for client, lines in clients:
                client.close()
                lines.close()


def _connected(place: Path) -> Any:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(place))
    lines = client.makefile("rb")
    assert "QMP" in json.loads(lines.readline())
    return client, lines


def test_commands_of_who_ends_are_still_answered(tmp_path: Path) -> None:
    place = tmp_path / "qmp"
    with Driven(OURS, tmp_path, "-qmp", f"unix:{place},server=on,wait=off", "-S"):
        client, lines = _connected(place)
        with client, lines:
            client.sendall(b'{"execute": "qmp_capabilities"}' + b'{"execute": "query-name"}' * 30)
            client.shutdown(socket.SHUT_WR)
            assert [json.loads(line) for line in lines] == [{"return": {}}] * 31


def test_a_console_has_one_peer_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "echo.bin").write_bytes(ECHO)
    place = tmp_path / "console"
    options = ("-bios", "echo.bin", "-serial", f"unix:{place},server=on,wait=off")
    with Driven(OURS, tmp_path, *options) as driven:
        first, second = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        with first, second:
            first.connect(str(place))
            second.connect(str(place))
            second.sendall(b"b")
            first.sendall(b"a")
            assert first.recv(1) == b"a"
            first.close()
            assert second.recv(1) == b"b"
        assert driven.quit() == 0


def test_it_waits_for_who_is_to_command_it(tmp_path: Path) -> None:
    place = tmp_path / "qmp"
    process = subprocess.Popen(
        [*OURS.argv, *MACHINE, "-kernel", SWEEPER, "-qmp", f"unix:{place},server"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for connection on: unix:")
        client, lines = _connected(place)
        with client, lines:
            client.sendall(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
            assert json.loads(lines.readline()) == {"return": {}}
        assert process.wait() == 0


HOSTILE: dict[str, bytes] = {
    "not JSON": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(5000),
    "0xff": b"\xff" * 5000,
    "brackets": b"[" * (4 << 20),
    "closing brackets": b"]" * 5000,
    "a long string": b'{"execute": "' + b"x" * (4 << 20),
    "a long word": b"x" * (4 << 20),
    "a long list": b"[" + b"1," * (2 << 20),
    "a string without an end": b'{"execute": "query-name\n',
    "a large number": b'{"execute": "query-name", "id": 1' + b"0" * 10000 + b"}",
    "an infinite number": b'{"execute": "query-name", "id": 1e9999}',
    "half a surrogate pair": b'{"execute": "\\ud800"}',
    "a NUL": b'{"execute": "pmemsave", "arguments": {"val": 0, "size": 1, "filename": "a\\u0000b"}}',
    "keys twice": b'{"execute": "query-name", "execute": "quit"}',
    "no name": b'{"execute": ""}',
    "many at once": b'{"execute": "query-commands"}' * 2000,
    "deep expressions": b'{"execute": "human-monitor-command", "arguments": {"command-line": "p '
    + b"(" * 3000
    + b'"}}',
    "many operators": b'{"execute": "human-monitor-command", "arguments": {"command-line": "p '
    + b"-" * 3000
    + b'1"}}',
    "a long line": b'{"execute": "human-monitor-command", "arguments": {"command-line": "'
    + b"p 1 " * 200_000
    + b'"}}',
    "an open quote": b'{"execute": "human-monitor-command", "arguments": {"command-line": "\\""}}',
    "a negative count": b'{"execute": "human-monitor-command", "arguments": '
    b'{"command-line": "xp /-5xb 0x1000"}}',
}


@pytest.fixture(name="besieged", scope="module")
def machine_for_all_of_them(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    directory = tmp_path_factory.mktemp("besieged")
    with Driven(OURS, directory, "-qmp", "unix:qmp,server=on,wait=off", "-S") as driven:
        yield driven
        assert driven.quit() == 0
        assert driven.said.read_text() == ""


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_clients(what: str, besieged: Driven) -> None:
    memory = psutil.Process(besieged.process.pid).memory_info
    before = memory().rss
    client, lines = _connected(besieged.said.with_name("qmp"))
    with client, lines:
        client.sendall(b'{"execute": "qmp_capabilities"}\n')
        lines.readline()
        client.settimeout(1)
        with contextlib.suppress(OSError):
            # It need not read on while we do not.
            client.sendall(HOSTILE[what])
        client.settimeout(None)
        assert memory().rss - before < 32 << 20
        besieged.execute("query-status")
        # What follows on a line of its own is heard again, unless we were thrown out.
        answers = []
        with contextlib.suppress(OSError):
            client.sendall(b'\n{"execute": "query-status", "id": "end"}\n')
            for line in lines:
                answers.append(json.loads(line))
                if answers[-1].get("id") == "end":
                    break
    errors = [answer["error"]["desc"] for answer in answers if "error" in answer]
    assert not any("internal" in error for error in errors)
    assert all(len(error) < 5000 for error in errors)


def test_who_does_not_read_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "qmp"
    with Driven(OURS, tmp_path, "-qmp", f"unix:{place},server=on,wait=off", "-S") as driven:
        memory = psutil.Process(driven.process.pid).memory_info
        before = memory().rss
        client, lines = _connected(place)
        with client, lines:
            client.sendall(b'{"execute": "qmp_capabilities"}\n')
            client.setblocking(False)
            query = b'{"execute": "query-commands"}\n'
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 4 << 20:
                    select.select([], [client], [], 0.5)
                    sent += client.send(query * 100)
            assert memory().rss - before < 32 << 20
            driven.execute("query-status")


@pytest.mark.parametrize("seed", range(20))
def test_values_do_not_depend_on_their_pieces(seed: int) -> None:
    some = random.Random(seed)
    pieces = [
        b'{"a": 1}',
        b"'",
        b'"',
        b"\\",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\n",
        b" ",
        b"tru",
        b"e",
        b"\xff",
    ]
    text = b"".join(some.choice(pieces) for _ in range(200)) + b'\n"\n{"end": true}\n'

    def values(chunks: list[bytes]) -> list[object]:
        reader = Values()
        found = [value for chunk in chunks for value in reader.feed(chunk)]
        return [str(v) if isinstance(v, JsonError) else v for v in found]

    whole = values([text])
    assert whole == values([text[i : i + 1] for i in range(len(text))])


# Terminals


class Terminal:
    """One that the process takes for a terminal."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.fd, inner = pty.openpty()
        self.process = subprocess.Popen(
            [*OURS.argv, *options],
            stdin=inner,
            stdout=inner,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=ENVIRONMENT,
        )
        os.close(inner)
        self.seen = b""

    def until(self, text: bytes) -> bytes:
        """What is shown up to ``text``."""
        while text not in self.seen:
            data = os.read(self.fd, 4096)
            assert data, self.seen
            self.seen += data
        shown, _, self.seen = self.seen.partition(text)
        return shown

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


# A guest that prints what is typed.
ECHO = struct.pack(
    "<14I",
    0x010002B7,  # lui t0, 0x1000: fromhost, and tohost 8 behind it
    0x00100313,  # loop: li t1, 1
    0x03831313,  # slli t1, t1, 56
    0x0062B423,  # sd t1, 8(t0): the console is to read
    0x0002B383,  # wait: ld t2, 0(t0)
    0xFE038EE3,  # beqz t2, wait
    0x0002B023,  # sd zero, 0(t0)
    0x0FF3F393,  # andi t2, t2, 255
    0x10100313,  # li t1, 0x101
    0x03031313,  # slli t1, t1, 48
    0x00736333,  # or t1, t1, t2
    0x0062B423,  # sd t1, 8(t0): the console is to write
    0x0002B023,  # sd zero, 0(t0)
    0xFD1FF06F,  # j loop
)


@pytest.fixture(name="terminal")
def with_terminal(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "echo.bin").write_bytes(ECHO)
    terminal = Terminal(tmp_path, "-M", "spike", "-m", "16M", "-bios", "echo.bin", "-nographic")
    yield terminal
    terminal.close()


def test_console_and_monitor_share_a_terminal(terminal: Terminal) -> None:
    terminal.type(b"\x01c")
    terminal.until(b"(qemu) ")
    # Now it is no longer the terminal that echoes, but the guest.
    terminal.type(b"\x01chello\x01\x01")
    assert terminal.until(b"\x01") == b"hello"
    terminal.type(b"\x01c")
    terminal.until(b"(qemu) ")
    terminal.type(b"info statusx\x7f\r")
    assert terminal.until(b"VM status: running").startswith(b"info statusx\x08 \x08")
    terminal.until(b"(qemu) ")
    # The line before, once more.
    terminal.type(b"\x1b[A\r")
    terminal.until(b"VM status: running")
    # Ctrl-C is a key: it clears the line.
    terminal.type(b"quit\x03info name\r")
    terminal.until(b"(qemu) ")
    terminal.type(b"\x01h")
    terminal.until(b"C-a x")
    terminal.type(b"\x01x")
    assert terminal.process.wait() == 0


def test_the_monitor_of_a_pipe(tmp_path: Path) -> None:
    done = subprocess.run(
        [*OURS.argv, *MACHINE, "-S", "-monitor", "stdio"],
        input="info status\nsavevm x\nmigrate exec:false\nquit\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0
    assert "(qemu) info status\nVM status: paused (prelaunch)\n(qemu) " in done.stdout
    assert "Error: no block device can store vmstate for snapshot" in done.stdout
    assert done.stdout.count("Error: ") == 2
    assert "Traceback" not in done.stderr


# Options

LOADER = f"loader,file={SWEEPER},addr"
BAD = (
    (("-foo",), "-foo: invalid option"),
    (("--foo", "x"), "--foo: invalid option"),
    (("disk.img",), "disk.img: "),
    (("-m",), "-m: requires an argument"),
    (("-m", "much"), "-m much: Parameter 'size' expects"),
    (("-M", "virt"), '-M virt: unsupported machine type: "virt"'),
    (("-M", "spike,wings=on"), "Property 'spike-machine.wings' not found"),
    (("-M", "spike,x-release=6.1"), "'x-release' does not accept value '6.1'"),
    (("-cpu", "cray"), "unable to find CPU model 'cray'"),
    (("-cpu", "rv64,v=on"), "have no 'v'"),
    (("-cpu", "rv64,f=off"), "a hart with 'd' has 'f'"),
    (("-cpu", "rv64,d=perhaps"), "Parameter 'd' expects 'on' or 'off'"),
    (("-smp", "9"), "max CPUs supported"),
    (("-smp", "0"), "must be greater than zero"),
    (("-accel", "kvm"), "'kvm' is not supported"),
    (("-device", "e1000"), "only device"),
    (("-nic", "user"), "'user' is not supported"),
    (("-icount", "99"), "Invalid shift value"),
    (("-m", "8388608T"), "-m: no addresses for"),
    (("-kernel", "nowhere.elf"), "-kernel nowhere.elf: No such file"),
    (("-kernel", "/"), "-kernel /: Is a directory"),
    (("-kernel", "/dev/zero"), "-kernel /dev/zero: does not end"),
    (("-bios", "nowhere.bin"), "-bios nowhere.bin: No such file"),
    (("-bios", __file__, "-m", "8K"), f"-bios {__file__}: the firmware (0x80000000 to"),
    (("-kernel", SWEEPER, "-initrd", "nowhere"), "-initrd nowhere: No such file"),
    (("-device", f"{LOADER}=0x10"), f"-device {LOADER}=0x10: the image (0x10 to"),
    (("-device", "loader,file=x,addr=0"), "-device loader,file=x,addr=0: No such file"),
    (("-serial", "file:/nowhere/x"), "-serial file:/nowhere/x: /nowhere/x: No such file"),
    (("-smp", "8,cores=3"), "product of the hierarchy (3) must match maxcpus (8)"),
    (("-smp", "8,sockets=2,cores=2,threads=1"), "must match maxcpus (8)"),
    (("-append", "x"), "-append only allowed with -kernel"),
    (("-initrd", "x"), "-initrd only allowed with -kernel"),
    (("-incoming", "pigeon:x"), "-incoming pigeon:x: unknown migration protocol"),
    (("-incoming", "unix:/nowhere/x"), "-incoming unix:/nowhere/x: "),
    (("-qmp", "pigeon:x"), "'pigeon:x' is not a valid char driver"),
    (("-qmp", "unix:/nowhere/x,server,nowait"), "Failed to bind socket"),
    (("-qmp", "tcp:127.0.0.1:1"), "Failed to connect"),
    (("-mon", "chardev=none"), 'chardev "none" not found'),
    (("-mon", "mode=control"), "Parameter 'chardev' is missing"),
    (("-chardev", "null"), "no id specified"),
    (("-chardev", "null,id=a", "-chardev", "null,id=a"), "Duplicate ID 'a'"),
    (("-chardev", "socket,id=a"), "a socket needs"),
    (("-chardev", "socket,id=a,fd=99"), "FD number"),
    (("-chardev", "null,id=a,wings=on"), "Invalid parameter 'wings'"),
    (("-serial", "stdio", "-monitor", "stdio"), "cannot use stdio by multiple"),
    (("-drive", "file=nowhere.qcow2"), "nowhere.qcow2: No such file"),
    (("-drive", "format=raw,file=x"), "format 'raw'"),
    (("-loadvm", "x"), "no block device can store vmstate"),
    (("-global", "migration.wings=1"), "Property 'migration.wings' not found"),
    (("-global", "migration.downtime-limit=-1"), "expects a non-negative number"),
    (("-global", "migration.x-multifd=on"), "not supported"),
    (("-pidfile", "/nowhere/pid"), "cannot create PID file"),
)


@pytest.mark.parametrize(("options", "why"), BAD, ids=lambda value: str(value)[:40])
def test_options_that_cannot_be(
    options: tuple[str, ...],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert machine.main([*MACHINE, "-S", *options], standalone_mode=False) == 1
    said = capfd.readouterr().err
    assert said.startswith("savevm machine: ")
    assert why in said


def test_help_and_version(tmp_path: Path) -> None:
    told = run("--help", directory=tmp_path)
    assert told.returncode == 0
    for option in ("-M, -machine", "-kernel FILE", "-incoming URI|defer", "-qmp DEV", "-S"):
        assert option in told.stdout
    assert run("-version", directory=tmp_path).stdout.startswith("savevm machine ")
    assert "spike" in run("-M", "help", directory=tmp_path).stdout


def test_options_are_taken(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"here I am")
    options = (
        *(
            "-m",
            "size=32M",
            "-smp",
            "2",
            "-cpu",
            "rv64,h=off,sstc=on",
            "-accel",
            "tcg,thread=single",
        ),
        *("-name", "guest=alice,debug-threads=on", "-uuid", "12345678-1234-1234-1234-123456789ABC"),
        *("-device", "loader,file=data,addr=0x81000000,force-raw=on", "-nic", "none"),
        *("-global", "migration.downtime-limit=77", "-global", "migration.x-events=on"),
        *("-M", "x-release=7.2,x-drop=a:b"),
    )
    with Driven(OURS, tmp_path, *options, "-S") as driven:
        assert driven.execute("query-memory-size-summary") == {"base-memory": 32 << 20}
        assert [cpu["cpu-index"] for cpu in driven.execute("query-cpus-fast")] == [0, 1]
        assert driven.execute("query-name") == {"name": "alice"}
        assert driven.execute("query-uuid")["UUID"] == "12345678-1234-1234-1234-123456789abc"
        assert (
            driven.human("xp /9xb 0x81000000").split()[1:]
            == [f"0x{b:02x}" for b in b"here I am"][:9]
        )
        parameters = driven.execute("query-migrate-parameters")
        assert parameters["downtime-limit"] == 77
        assert (parameters["x-release"], parameters["x-drop"]) == ("7.2", "a:b")
        states = {c["capability"]: c["state"] for c in driven.execute("query-migrate-capabilities")}
        assert [name for name, state in states.items() if state] == ["events"]


def test_a_signal_ends_a_machine_that_nobody_listens_to(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*OURS.argv, *MACHINE, "-serial", "stdio", "-kernel", SWEEPER, "-pidfile", "pid"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"A"
        process.stdout.close()
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_reset_loads_the_files_of_loaders_again(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"loaded at every reset")
    loader = ("-device", f"loader,file=data,addr={RAM + 0x10_0000:#x},force-raw=on")
    sweeper = (
        "-kernel",
        SWEEPER,
        "-append",
        f"start={RAM + 0x10_0000:#x} end={RAM + 0x18_0000:#x}",
    )
    with Driven(OURS, tmp_path, *loader, *sweeper) as driven:
        memory = {"val": RAM + 0x10_0000, "size": 1, "filename": "seen"}
        while True:
            driven.execute("pmemsave", memory)
            if (tmp_path / "seen").read_bytes() != b"l":
                break
        driven.execute("stop")
        driven.execute("system_reset")
        driven.execute("pmemsave", memory)
        assert (tmp_path / "seen").read_bytes() == b"l"


def test_more_cpus_than_there_may_be_are_refused(tmp_path: Path) -> None:
    ended = run(*MACHINE, "-smp", "cpus=4,maxcpus=2", directory=tmp_path)
    assert ended.returncode == 1
    assert "maxcpus (2) is below cpus (4)" in ended.stderr


def test_the_end_of_a_command_is_told_by_its_exit_status(tmp_path: Path) -> None:
    ended = run(*MACHINE, "-kernel", SWEEPER, "-incoming", "exec:exit 3", directory=tmp_path)
    assert ended.returncode == 1
    assert "the command ended with exit status 3" in ended.stderr


def test_a_rate_limit_leaves_the_statistics_sane(tmp_path: Path) -> None:
    with Driven(OURS, tmp_path, "-kernel", SWEEPER) as driven:
        driven.execute("migrate-set-parameters", {"max-bandwidth": 1_000_000})
        driven.execute("migrate", {"uri": "exec:cat >/dev/null"})
        seen: list[Any] = []
        while len(seen) < 50:
            answer = driven.execute("query-migrate")
            if "ram" in answer:
                seen.append(answer)
            time.sleep(0.02)
        for answer in seen:
            # Not what a window gives in which nothing moved.
            assert answer["ram"]["mbps"] == 0 or answer["ram"]["mbps"] > 0.001
            assert 0 < answer["expected-downtime"] < 3_600_000
        driven.execute("migrate_cancel")
        assert driven.migration()["status"] == "cancelled"


def test_two_clients_cannot_migrate_at_once(tmp_path: Path) -> None:
    board, settings = Spike(1 << 20), Settings()
    emulator = Emulator(board, settings)

    async def both() -> None:
        first = emulator.migrate("exec:cat >/dev/null", {})
        with pytest.raises(CommandError, match="in progress"):
            emulator.migrate("exec:cat >/dev/null", {})
        emulator.migrate_cancel()
        await first

    asyncio.run(both())
    assert emulator.migration() == {"status": "cancelled"}


def test_memory_that_has_no_room_is_not_saved_in_part(tmp_path: Path) -> None:
    with Driven(OURS, tmp_path, "-kernel", SWEEPER, "-S") as driven:
        resource.prlimit(driven.process.pid, resource.RLIMIT_FSIZE, (5000, 5000))
        _, words = driven.fails("memsave", {"val": RAM, "size": 6000, "filename": "memory"})
        assert words == "File too large"
