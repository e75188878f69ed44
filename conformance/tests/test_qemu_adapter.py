"""The adapter of QEMU, in front of our own machine and of real QEMUs.

SAVEVM_QEMUS names those: binaries ``qemu-system-riscv64`` or directories with one, as in PATH; else it
is the one on PATH.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest

from savevm.transcript import transcribe
from savevm_conformance.adapters.qemu import OURS, Emulator, emulator_at
from savevm_conformance.cases import Case, load_cases
from savevm_conformance.locate import vectors_directory
from savevm_conformance.protocol.client import Adapter
from savevm_conformance.targets import command_of
from savevm_conformance.wire import MAIN, be32

SPIKE = {"arch": "riscv64", "argv": ["-M", "spike", "-m", "16K", "-bios", "none"], "since": "5.2"}
NAME = "qemu-system-riscv64"


def places() -> list[Path]:
    named = [Path(at) for at in os.environ.get("SAVEVM_QEMUS", "").split(os.pathsep) if at]
    return named or [Path(at) for at in (shutil.which(NAME),) if at]


TARGETS = [
    pytest.param(("machine", OURS), id="machine"),
    *(
        pytest.param((f"qemu:{at}", emulator), id=f"qemu-{emulator.version}")
        for at in places()
        for emulator in [emulator_at(at)]
    ),
]
if len(TARGETS) == 1:
    TARGETS.append(
        pytest.param(
            None,
            id="qemu",
            marks=pytest.mark.skip(reason=f"no {NAME} on PATH or in SAVEVM_QEMUS: no real QEMU"),
        )
    )


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> tuple[str, Emulator]:
    found: tuple[str, Emulator] = request.param
    return found


@pytest.fixture
def emulator(target: tuple[str, Emulator]) -> Emulator:
    return target[1]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the suite makes a directory for the temporary files of the adapter."""
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture
def adapter(target: tuple[str, Emulator], work: Path) -> Iterator[Adapter]:
    adapter = Adapter(command_of(target[0]), seconds=60)
    try:
        yield adapter
    finally:
        adapter.kill()


@pytest.fixture(scope="module")
def states() -> dict[str, Case]:
    return {case.id: case for case in load_cases(vectors_directory()) if case.verdict == "write"}


@pytest.fixture
def state(states: dict[str, Case]) -> Case:
    return states["stream/write/spike"]


@pytest.fixture
def stream(adapter: Adapter, state: Case, tmp_path: Path) -> Path:
    """What this emulator has written itself: every release has its own devices."""
    output = tmp_path / "written.bin"
    reply = adapter.case(
        {
            "id": "w",
            "role": "writer",
            "machine": SPIKE,
            "state": str(state.state),
            "output": str(output),
        }
    )
    assert reply == {"id": "w", "outcome": "written"}
    return output


def load(adapter: Adapter, path: Path, data: bytes | None = None, **machine: Any) -> dict[str, Any]:
    if data is not None:
        path.write_bytes(data)
    message = {"id": path.name, "role": "loader", "stream": str(path), "machine": SPIKE | machine}
    return adapter.case(message)


def pass_on(adapter: Adapter, path: Path, output: Path) -> dict[str, Any]:
    files = {"stream": str(path), "output": str(output)}
    return adapter.case({"id": "p", "role": "peer", "machine": SPIKE, **files})


def ram(data: bytes) -> dict[str, str]:
    return {block["idstr"]: block["digest"] for block in transcribe(data)["ram"]}


def section(data: bytes, idstr: str) -> dict[str, Any]:
    found = [r for r in transcribe(data)["records"] if r.get("idstr") == idstr]
    record: dict[str, Any] = found[0]
    return record


def body(data: bytes, idstr: str) -> bytes:
    at = section(data, idstr)["body"]
    return data[at["offset"] : at["offset"] + at["length"]]


def test_hello(adapter: Adapter, emulator: Emulator) -> None:
    hello = adapter.hello()
    assert hello["implementation"]["name"] in ("QEMU", "savevm machine")
    assert hello["implementation"]["version"] == emulator.version
    assert hello["roles"] == ["loader", "writer", "peer"]


def test_a_state_is_written(stream: Path, state: Case) -> None:
    transcript = transcribe(stream.read_bytes())
    assert transcript["error"] is None
    assert transcript["findings"] == []
    assert ram(stream.read_bytes()).items() >= state.expect["ram"].items()
    assert {"ram", "timer", "cpu"} <= {r.get("idstr") for r in transcript["records"]}


def test_its_own_stream_is_loaded(adapter: Adapter, stream: Path, state: Case) -> None:
    reply = load(adapter, stream)
    assert reply["outcome"] == "accept", reply
    assert reply["ram"] == ram(stream.read_bytes())
    assert reply["ram"][MAIN.decode()] == state.expect["ram"][MAIN.decode()]


@pytest.mark.parametrize(
    ("offset", "change", "kind"),
    [
        pytest.param(0, b"X", "malformed", id="magic"),
        pytest.param(4, be32(9), "unsupported", id="version"),
        pytest.param(1000, None, "truncated", id="in-a-page"),
    ],
)
def test_damage_is_refused(
    adapter: Adapter, stream: Path, offset: int, change: bytes | None, kind: str
) -> None:
    data = stream.read_bytes()
    data = data[:offset] + (change + data[offset + len(change) :] if change else b"")
    reply = load(adapter, stream.with_name("damaged.bin"), data)
    assert (reply["outcome"], reply.get("class")) == ("reject", kind), reply
    assert reply["detail"]
    # Whatever became of the one machine, the next is well.
    assert load(adapter, stream)["outcome"] == "accept"


@pytest.mark.parametrize("target", TARGETS[:1], indirect=True)
def test_our_own_says_where_and_why(adapter: Adapter, stream: Path) -> None:
    data = stream.read_bytes()
    at = section(data, "timer")["body"]["offset"] - 4
    reply = load(adapter, stream, data[:at] + be32(9) + data[at + 4 :])
    told = {key: reply[key] for key in ("rule", "offset", "section")}
    assert told == {
        "rule": "section.version.newer-than-supported",
        "offset": at,
        "section": "timer",
    }


def test_a_crash_is_told(adapter: Adapter, stream: Path, emulator: Emulator) -> None:
    """Up to 10.0 QEMU allocates for a machine name whatever length it has, and cannot."""
    data = stream.read_bytes()
    reply = load(adapter, stream.with_name("long.bin"), data[:9] + b"\xff" * 4 + data[13:])
    if emulator.release is not None and emulator.release <= (10, 0):
        assert reply["outcome"] == "crash"
        assert "SIGTRAP" in reply["why"]
        assert "failed to allocate" in reply["why"]
    elif emulator.release is None or emulator.release >= (11, 1):
        assert reply["outcome"] == "reject"
    else:
        assert reply["outcome"] in ("crash", "reject")
    assert load(adapter, stream)["outcome"] == "accept"


def test_a_hang_is_told(adapter: Adapter, stream: Path, emulator: Emulator) -> None:
    """QEMU waits for more when there is nothing at all."""
    reply = load(adapter, stream.with_name("empty.bin"), b"")
    if emulator is OURS:
        assert (reply["outcome"], reply["rule"]) == ("reject", "header.truncated")
    else:
        assert reply["outcome"] == "timeout"
        assert "5 s after the end of the stream" in reply["why"]
    assert load(adapter, stream)["outcome"] == "accept"


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        ({"arch": "vax"}, "no emulator of vax"),
        ({"since": "999.0"}, "QEMU 999.0 and later"),
        ({"until": "0.9"}, "QEMU 5.2 to 0.9"),
        ({"argv": ["-M", "toaster"]}, "does not start"),
    ],
)
def test_machines_of_others_are_skipped(
    adapter: Adapter, stream: Path, emulator: Emulator, machine: dict[str, Any], why: str
) -> None:
    reply = load(adapter, stream, **machine)
    if emulator is OURS and why.startswith("QEMU"):
        # It loads the streams of all releases.
        assert reply["outcome"] == "accept"
    else:
        assert reply["outcome"] == "skip"
        assert why in reply["why"]


def test_what_cannot_be_built_is_skipped(
    adapter: Adapter, states: dict[str, Case], tmp_path: Path
) -> None:
    output = tmp_path / "written.bin"
    message = {"id": "w", "role": "writer", "machine": SPIKE, "output": str(output)}
    for name in ("section/write/instances", "ram/write/page-size-8192", "legacy/write/v3-ram4"):
        reply = adapter.case(message | {"state": str(states[name].state)})
        assert reply["outcome"] == "skip", name
        assert not output.exists()


def test_a_peer_passes_on_what_it_was_given(adapter: Adapter, stream: Path, tmp_path: Path) -> None:
    output = tmp_path / "passed on.bin"
    assert pass_on(adapter, stream, output)["outcome"] == "written"
    given, passed = stream.read_bytes(), output.read_bytes()
    assert ram(passed) == ram(given)
    assert body(passed, "cpu") == body(given, "cpu")


def test_a_peer_runs_what_was_running(adapter: Adapter, stream: Path, tmp_path: Path) -> None:
    data = stream.read_bytes()
    at = section(data, "globalstate")["body"]["offset"]
    running = be32(8) + b"running".ljust(100, b"\0")
    path, output = tmp_path / "running.bin", tmp_path / "passed on.bin"
    path.write_bytes(data[:at] + running + data[at + len(running) :])
    assert pass_on(adapter, path, output)["outcome"] == "written"
    # Its program is in no memory: it traps, and that shows in its registers.
    assert body(output.read_bytes(), "cpu") != body(data, "cpu")
    assert load(adapter, output)["outcome"] == "accept"


def test_a_peer_refuses_as_a_loader_does(adapter: Adapter, stream: Path, tmp_path: Path) -> None:
    stream.write_bytes(stream.read_bytes()[:1000])
    output = tmp_path / "passed on.bin"
    assert pass_on(adapter, stream, output)["outcome"] == "reject"
    assert not output.exists()


def test_a_file_that_is_not_there_is_an_error(adapter: Adapter, tmp_path: Path) -> None:
    assert load(adapter, tmp_path / "nowhere")["outcome"] == "error"


def of_this(directory: Path) -> list[psutil.Process]:
    """Processes that work in a directory or below."""
    found = []
    for process in psutil.process_iter(["cwd"]):
        cwd = process.info["cwd"]
        if cwd and Path(cwd).is_relative_to(directory):
            found.append(process)
    return found


@pytest.mark.parametrize("how", ["bye", "kill", "SIGTERM"])
def test_nothing_is_left(adapter: Adapter, stream: Path, work: Path, how: str) -> None:
    assert load(adapter, stream)["outcome"] == "accept"
    # One waits for the next case.
    assert of_this(work)
    process = adapter._process
    assert process is not None
    if how == "bye":
        assert adapter.bye() == 0
    elif how == "SIGTERM":
        process.terminate()
        process.wait(10)
    for _ in range(100):
        if how == "kill" or not of_this(work):
            break
        time.sleep(0.05)
    adapter.kill()
    assert not of_this(work)
    assert not list(work.iterdir())


def test_a_path_without_qemu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no qemu-system-\*"):
        emulator_at(tmp_path)
    other = tmp_path / "qemu-system-riscv64"
    other.write_text("#!/bin/sh\necho toaster 1.0\n")
    other.chmod(0o755)
    with pytest.raises(ValueError, match="says 'toaster"):
        emulator_at(other)


@pytest.mark.parametrize("target", TARGETS[1:], indirect=True)
def test_a_script_around_it_is_no_hiding_place(
    emulator: Emulator, work: Path, tmp_path: Path, state: Case
) -> None:
    """A shell that stays in between has another exit code, and a child."""
    (command,) = emulator.commands["riscv64"]
    script = tmp_path / NAME
    script.write_text(f'#!/bin/sh\n{command} "$@"\nexit $?\n')
    script.chmod(0o755)
    adapter = Adapter(command_of(f"qemu:{script}"), seconds=60)
    try:
        output = tmp_path / "written.bin"
        files = {"state": str(state.state), "output": str(output)}
        assert adapter.case({"id": "w", "role": "writer", "machine": SPIKE, **files})
        data = output.read_bytes()
        reply = load(adapter, tmp_path / "long.bin", data[:9] + b"\xff" * 4 + data[13:])
        if emulator.release is not None and emulator.release <= (10, 0):
            assert reply["outcome"] == "crash"
            assert "SIGTRAP" in reply["why"]
        assert load(adapter, output)["outcome"] == "accept"
        assert adapter.bye() == 0
        assert not of_this(work)
    finally:
        adapter.kill()
