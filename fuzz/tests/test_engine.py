"""Campaigns: what a target does to its process is told, too, and the campaign goes on."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from savevm.stream.events import Event
from savevm.stream.reader import Reader
from savevm_conformance.locate import VARIABLE, vectors_directory
from savevm_fuzz import engine
from savevm_fuzz.engine import Campaign, Introduced, Stats, introduce
from savevm_fuzz.findings import Finding
from savevm_fuzz.seeds import seeds
from savevm_fuzz.targets import inprocess, limits, open_target

REAL = vectors_directory()
EMPTY, MARKED = b"QEVM\0\0\0\3\0", b"QEVM\0\0\0\3\2"


@pytest.fixture(autouse=True)
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The vectors of one area, in use, with no patience."""
    shutil.copytree(REAL / "header", tmp_path / "vectors/header")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "vectors"))
    monkeypatch.setattr(engine, "GRACE", 0.3)
    monkeypatch.setattr(limits, "GRACE", 0.3)
    seeds.cache_clear()
    yield
    seeds.cache_clear()


def run(target: Introduced, count: int = 60, **given: Any) -> tuple[list[Finding], Stats]:
    found: dict[str, Finding] = {}
    running = Campaign(target, seed=0, executions=count, **given).run()
    while True:
        try:
            event = next(running)
        except StopIteration as end:
            return list(found.values()), end.value
        if isinstance(event, Finding):
            found[event.signature] = event


def dying(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaving(data: bytes) -> None:
    os._exit(3)


def stuck(data: bytes) -> None:
    # As in compiled code, which looks for no signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGALRM,))
    time.sleep(60)


def slow(data: bytes) -> None:
    time.sleep(60)


def hoarding(data: bytes) -> None:
    bytearray(1 << 30)


def raising(data: bytes) -> None:
    raise RuntimeError(f"no {len(data)}")


@pytest.mark.parametrize(
    ("wrong", "kind", "signature"),
    [
        (dying, "crash", "crash: the process ended with signal SIGKILL"),
        (leaving, "crash", "crash: the process ended with exit code N"),
        (stuck, "timeout", "timeout: unpredicted"),
        (slow, "timeout", "timeout: unpredicted"),
        (hoarding, "memory", "memory: unpredicted"),
        (raising, "crash", "crash: RuntimeError in "),
    ],
)
def test_what_becomes_of_a_process(
    monkeypatch: pytest.MonkeyPatch, wrong: Any, kind: str, signature: str
) -> None:
    right = inprocess._quick

    def quick(data: bytes, *, cut: bool) -> dict[str, Any]:
        # Only of one seed, and of what is made of it.
        if data[7:9] == b"\3\0" and wrong is not None:
            wrong(data)
        return right(data, cut=cut)

    monkeypatch.setattr(inprocess, "_quick", quick)
    target = introduce("reference")
    count = 10 if kind == "timeout" else 40
    found, stats = run(target, count, seconds=0.2)
    mine = [finding for finding in found if finding.look.kind == kind]
    assert any(finding.signature.startswith(signature) for finding in mine), found
    assert {finding.data[7:9] for finding in found} == {b"\3\0"}
    assert min(len(finding.data) for finding in found) == 9
    assert stats.executions == count


def test_share_of_the_work() -> None:
    target = introduce("spec")
    assert [Campaign(target, 0, 3, executions=8).share(n) for n in range(3)] == [3, 3, 2]
    _, stats = run(target, 41, jobs=2)
    assert stats.executions == 41
    assert stats.compared == 41


def test_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read otherwise when it comes in pieces is found without the grammar."""

    class Forgetful:
        """Not derived: what is compiled has no classes below it."""

        def __init__(self, **options: Any) -> None:
            self._reader = Reader(**options)

        def feed(self, data: bytes) -> list[Event]:
            return self._reader.feed(data if len(data) != 1 else b"\0")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reader, name)

    monkeypatch.setattr(inprocess, "Reader", Forgetful)
    found, _ = run(introduce("reference"), 200, compare=1_000_000)
    assert any("in pieces" in finding.signature for finding in found)
    assert {finding.look.kind for finding in found} == {"error"}


def test_two_readings_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the grammar knows to be wrong is found where streams are compared."""
    monkeypatch.setattr(inprocess, "rebuild", lambda data: data + b"\0")
    found, _ = run(introduce("reference"), 60)
    assert [finding.signature for finding in found] == ["accept: rebuilt"]
    assert len(found[0].data) == 9


def test_grammar_is_held_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: bytes) -> dict[str, Any]:
        return {"outcome": "accept"}

    monkeypatch.setattr(inprocess, "_verdict", wrong)
    found, _ = run(introduce("spec"), 30)
    assert {finding.look.kind for finding in found} == {"disagreement"}
    assert all(finding.signature.startswith("accept, not reject ") for finding in found)


def test_worker_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> Any:
        raise KeyError("nothing")

    monkeypatch.setattr(engine, "mutate", no)
    with pytest.raises(RuntimeError, match="nothing"):
        run(introduce("reference"), 1000)


def test_limits_are_lifted_again() -> None:
    target = open_target("reference", seconds=0.2, memory=64 << 20)
    assert target.run(EMPTY)["outcome"] == "accept"
    time.sleep(0.4)
    assert len(bytearray(256 << 20)) == 256 << 20
