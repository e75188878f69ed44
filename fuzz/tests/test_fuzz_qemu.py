"""A QEMU that stays makes of streams what one makes of them that is started for each.

SAVEVM_QEMUS names those: binaries ``qemu-system-riscv64`` or directories with one, as in PATH; else it
is the one on PATH.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from savevm_conformance.cases import Case, load_cases
from savevm_conformance.locate import vectors_directory
from savevm_fuzz.cli import fuzz
from savevm_fuzz.findings import Finding, examine, led_by
from savevm_fuzz.promote import PromotionError, promote
from savevm_fuzz.targets.adapter import AdapterTarget
from savevm_fuzz.targets.board import ZEROS
from savevm_fuzz.targets.qemu import LARGEST, QemuTarget, open_qemu

NAME = "qemu-system-riscv64"
SECONDS = 2.0


def places() -> list[Path]:
    named = [Path(at) for at in os.environ.get("SAVEVM_QEMUS", "").split(os.pathsep) if at]
    return named or [Path(at) for at in (shutil.which(NAME),) if at]


CASES = {
    case.id: case
    for case in load_cases(vectors_directory())
    if case.machine is not None and case.verdict != "write"
}
NO_QEMU = f"no {NAME} on PATH or in SAVEVM_QEMUS: not held against a real QEMU"


@pytest.fixture(
    scope="module",
    params=[pytest.param(at, id=str(number)) for number, at in enumerate(places())]
    or [pytest.param(None, marks=pytest.mark.skip(reason=NO_QEMU))],
)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture(name="target")
def open_target(path: Path) -> Iterator[QemuTarget]:
    try:
        target = open_qemu(f"qemu:{path}", seconds=SECONDS, memory=1 << 30)
    except ValueError as error:
        pytest.skip(str(error))
    yield target
    target.close()


@pytest.fixture(name="fresh", scope="module")
def one_for_each(path: Path) -> Iterator[AdapterTarget]:
    target = AdapterTarget(f"qemu:{path}", seconds=60, memory=4 << 30)
    yield target
    target.close()


def stream(id: str) -> bytes:
    return CASES[id].stream.read_bytes()


def whole(case: Case) -> bool:
    """Whether its outcome does not come from where the input ends."""
    return case.expect.get("class") != "truncated"


def test_vectors_as_if_loaded_by_a_new_process(target: QemuTarget, fresh: AdapterTarget) -> None:
    wrong = []
    for case in filter(whole, CASES.values()):
        data = case.stream.read_bytes()
        reply = target.run(data)
        expected = fresh.run(data + bytes(ZEROS))
        if "loadvm" in reply or reply["outcome"] != expected["outcome"]:
            wrong.append((case.id, reply, expected))
        for name, digest in reply.get("ram", {}).items():
            if expected["ram"][name] != digest:
                wrong.append((case.id, reply, expected))
    assert not wrong


def test_vectors_are_predicted(target: QemuTarget) -> None:
    predicted = 0
    for case in filter(whole, CASES.values()):
        listed = case.loader or case.expect
        verdict = target.predict(case.stream.read_bytes())
        # Machines of other releases are not predicted to be taken.
        if verdict["outcome"] == "skip" or listed["verdict"] == "either" or "spike-" in case.id:
            continue
        predicted += 1
        # What only those are held to who read the description.
        if listed.get("rule", "").startswith("vmdesc."):
            continue
        assert verdict["outcome"] == listed["verdict"], case.id
        for name in verdict.get("ram", ()):
            assert verdict["ram"][name] == case.expect["ram"][name], case.id
    assert predicted > 100


def test_loads_by_one_process(target: QemuTarget) -> None:
    taken, refused = stream("ram/accept/live"), stream("section/reject/type-ff")
    target.run(taken)
    pid = target.pid
    for _ in range(150):
        assert target.run(taken)["outcome"] == "accept"
        assert target.run(refused)["outcome"] == "reject"
    assert target.pid == pid


def test_memory_is_that_of_the_stream(target: QemuTarget) -> None:
    """Not what the stream before has left where this one has nothing."""
    full, empty = stream("ram/accept/live"), stream("section/accept/live-without-end")
    replies = [target.run(data) for data in (full, empty)]
    assert [reply["ram"] for reply in replies] == [target.predict(d)["ram"] for d in (full, empty)]
    assert replies[0]["ram"] != replies[1]["ram"]
    assert not any("incoming" in reply for reply in replies)


def test_behind_the_stream_are_zeros(target: QemuTarget) -> None:
    """Not what is left of the longer one before."""
    cut = stream("stream/accept/configuration-only")[:-1]
    assert target.run(cut + b"\xff" * 100)["outcome"] == "reject"
    assert target.predict(cut)["outcome"] == "accept"
    assert target.run(cut) == {"outcome": "accept", "ram": {}}


def test_configuration_of_the_stream_before_is_forgotten(target: QemuTarget) -> None:
    target.run(stream("ram/accept/live"))
    pid = target.pid
    assert target.run(stream("configuration/reject/capability-unknown"))["outcome"] == "reject"
    reply = target.run(stream("ram/accept/live"))
    assert (reply["outcome"], target.pid) == ("accept", pid)


def test_commands_that_last_do_not(target: QemuTarget) -> None:
    for slug in ("listen", "run"):
        reply = target.run(stream(f"command/accept/postcopy-{slug}-unasked"))
        assert (reply["outcome"], "loadvm" in reply) == ("reject", False)


@pytest.mark.parametrize(
    ("number", "outcome"), [(signal.SIGSTOP, "timeout"), (signal.SIGSEGV, "crash")]
)
def test_process_that_ends_is_an_outcome(target: QemuTarget, number: int, outcome: str) -> None:
    data = stream("ram/accept/live")
    assert target.run(data)["outcome"] == "accept"
    assert target.pid is not None
    os.kill(target.pid, number)
    reply = target.run(data)
    assert reply["outcome"] == outcome
    assert reply["why"]
    # It does not happen again, whatever is loaded before.
    assert (reply["incoming"], reply["before"]) == ("accept", None)
    assert target.run(data)["outcome"] == "accept"


def test_finding_that_takes_the_stream_before(
    target: QemuTarget, path: Path, tmp_path: Path
) -> None:
    data = stream("stream/accept/configuration-only")
    before = [stream("configuration/reject/capability-unknown")]
    seen = examine(target, data, before=before)
    assert (seen.kind, seen.got["incoming"], led_by(seen.got)) == ("crash", "accept", before)
    assert examine(target, data).kind is None
    finding = Finding(f"qemu:{path}", target.name, target.version, seen, data, "", ())
    replayed = CliRunner().invoke(fuzz, ["--replay", str(finding.save(tmp_path))])
    assert (replayed.exit_code, "SIGSEGV" in replayed.output) == (1, True)
    with pytest.raises(PromotionError, match="behind others"):
        promote(data, finding.told())


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")
def test_qemu_of_a_worker_that_is_killed_ends(path: Path, tmp_path: Path) -> None:
    code = f"""
from time import sleep
from savevm_fuzz.targets.qemu import open_qemu
target = open_qemu("qemu:{path}", seconds=2, memory=1 << 30)
print(target.pid, flush=True)
sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        assert running(pid)
        worker.kill()
    deadline = time.monotonic() + 60
    while running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running(pid: int) -> bool:
    """Whether there is more of it than that nobody has waited for its end."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_stream_that_is_longer_than_its_place(target: QemuTarget) -> None:
    data = stream("ram/accept/live") + bytes(LARGEST)
    assert target.predict(data)["outcome"] == "accept"
    assert target.run(data)["outcome"] == "accept"


def test_not_a_qemu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no qemu-system"):
        open_qemu(f"qemu:{tmp_path}", seconds=1, memory=1 << 30)
