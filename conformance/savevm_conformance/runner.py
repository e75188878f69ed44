"""Runs targets on vectors and on whole streams, each case in a process that may fail alone."""

import hashlib
import json
import lzma
import multiprocessing
import time
import tomllib
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from savevm_conformance.adapters import OURS, Adapter, load
from savevm_conformance.transcripts import difference, digest, opaque

Outcome = Literal["pass", "fail", "error", "crash", "timeout"]
VERDICTS = ("accept", "reject", "either")
CASE_SECONDS = 20.0
STREAM_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Case:
    """A vector on disk.  ``expect`` is what ``expect.json`` holds."""

    id: str
    area: str
    verdict: str
    description: str
    rules: tuple[str, ...]
    directory: Path
    expect: dict[str, Any]

    @property
    def stream(self) -> Path:
        """The file with the bytes."""
        return self.directory / "stream.bin"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one target on one vector; ``expected`` and ``got`` are for people."""

    target: str
    case: str
    area: str
    verdict: str
    outcome: Outcome
    expected: str
    got: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StreamResult:
    """What became of all targets on one stream; ``problems`` is empty when it passed."""

    file: str
    outcome: Outcome
    problems: tuple[str, ...]
    opaque: dict[str, int]
    seconds: float


@dataclass(slots=True)
class Report:
    """All results of a run."""

    targets: tuple[str, ...]
    results: list[Result] = field(default_factory=list)
    streams: list[StreamResult] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """How many results are anything but a pass."""
        outcomes = [result.outcome for result in self.results]
        outcomes += [stream.outcome for stream in self.streams]
        return sum(outcome != "pass" for outcome in outcomes)

    def lines(self) -> Iterator[str]:
        """The report as JSON lines: ``kind`` is "vector", "stream" or, last, "verdict"."""
        for result in self.results:
            yield json.dumps({"kind": "vector", **asdict(result)})
        for stream in self.streams:
            yield json.dumps({"kind": "stream", **asdict(stream)})
        yield json.dumps(
            {
                "kind": "verdict",
                "targets": self.targets,
                "vectors": len(self.results),
                "streams": len(self.streams),
                "failures": self.failures,
            }
        )


def cases(
    directory: Path, areas: Iterable[str] = (), rules: Iterable[str] = ()
) -> tuple[Case, ...]:
    """The vectors under ``directory``, by id; only those of ``areas`` and ``rules`` if any.

    Raises:
        OSError, KeyError, ValueError: a vector is not whole.
    """
    wanted_areas, wanted_rules = set(areas), set(rules)
    found = []
    for path in sorted(directory.glob("*/*/*/case.toml")):
        area, verdict = path.parts[-4], path.parts[-3]
        if verdict not in VERDICTS or (wanted_areas and area not in wanted_areas):
            continue
        entry = tomllib.loads(path.read_text("utf-8"))
        if wanted_rules and not wanted_rules.intersection(entry["rules"]):
            continue
        found.append(
            Case(
                id=entry["id"],
                area=area,
                verdict=verdict,
                description=entry["description"],
                rules=tuple(entry["rules"]),
                directory=path.parent,
                expect=json.loads((path.parent / "expect.json").read_text("utf-8")),
            )
        )
    return tuple(found)


# Judging


def _said(verdict: dict[str, Any]) -> str:
    """A verdict (as in ``expect.json``, or as a target gave it) in one line."""
    if verdict["verdict"] == "reject":
        section = f" in {verdict['section']!r}" if verdict["section"] is not None else ""
        return f"reject {verdict['rule']} at {verdict['offset']}{section} ({verdict['errno']})"
    findings = [f"{f['rule']} at {f['offset']}" for f in verdict["findings"]]
    rebuild = "" if verdict["rebuild"] is True else f", rebuilt: {verdict['rebuild']}"
    return (
        f"accept {verdict['dialect']}, digest {verdict['digest'][:16]}{rebuild}"
        f"{', findings: ' if findings else ''}{', '.join(findings)}"
    )


def judge(target: str, case: Case, got: dict[str, Any]) -> Outcome:
    """Whether a target's verdict is the expected one.

    On ``either`` vectors our own targets follow the rules, and everybody else may do both.
    """
    expect = case.expect
    if expect["verdict"] == "either":
        if target not in OURS:
            return "pass"
        expect = expect["savevm"]
    same = expect["verdict"] == got["verdict"] and all(
        expect[key] == got[key]
        for key in expect
        if key in ("rule", "offset", "section", "errno", "dialect", "findings", "digest", "rebuild")
    )
    return "pass" if same else "fail"


def verdict_of(adapter: Adapter, data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an adapter makes of ``data``: its verdict and its transcript."""
    transcript = adapter.transcribe(data)
    error = transcript["error"]
    if error is not None:
        keys = ("rule", "offset", "section", "errno")
        return {"verdict": "reject", **{key: error[key] for key in keys}}, transcript
    rebuilt = adapter.rebuild(data)
    return {
        "verdict": "accept",
        "dialect": transcript["dialect"],
        "findings": transcript["findings"],
        "digest": digest(transcript),
        "rebuild": True if rebuilt == data else _first_difference(data, rebuilt),
    }, transcript


def _first_difference(data: bytes, rebuilt: bytes) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(data, rebuilt, strict=False)) if a != b),
        min(len(data), len(rebuilt)),
    )
    return f"differs from byte {at} ({len(rebuilt)} bytes for {len(data)})"


# Work, in a process of its own

_adapters: dict[str, Adapter] = {}


def _adapter(target: str) -> Adapter:
    if target not in _adapters:
        _adapters[target] = load(target)
    return _adapters[target]


def _on_vector(target: str, path: Path) -> dict[str, Any]:
    return verdict_of(_adapter(target), path.read_bytes())[0]


def read_stream(path: Path) -> bytes:
    """The bytes of a ``.bin`` or ``.bin.xz`` file."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _on_stream(targets: Sequence[str], path: Path) -> dict[str, Any]:
    """All targets on one stream: every one accepts and rebuilds it, and all say the same."""
    data = read_stream(path)
    problems: list[str] = []
    first: tuple[str, dict[str, Any]] | None = None
    bodies: dict[str, int] = {}
    for target in targets:
        verdict, transcript = verdict_of(_adapter(target), data)
        if verdict["verdict"] != "accept":
            problems.append(f"{target}: {_said(verdict)}")
        elif verdict["rebuild"] is not True:
            problems.append(f"{target}: rebuilt: {verdict['rebuild']}")
        if first is None:
            first, bodies = (target, transcript), opaque(transcript)
        elif digest(first[1]) != digest(transcript):
            where = difference(first[1], transcript)
            problems.append(f"{first[0]} and {target} differ: {where}")
    return {"problems": problems, "opaque": bodies}


Work = Callable[..., dict[str, Any]]


def _serve(pipe: Connection) -> None:
    while True:
        try:
            work, arguments = pipe.recv()
        except EOFError:
            return
        try:
            reply = {"reply": work(*arguments)}
        except KeyboardInterrupt:
            return
        except BaseException:
            reply = {"error": traceback.format_exc(limit=-6).strip()}
        pipe.send(reply)


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: int | None = None
    began: float = 0.0

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of one task: ``outcome`` "pass" means that there is a reply, whatever it says."""

    task: int
    outcome: Outcome
    reply: dict[str, Any]
    detail: str
    seconds: float


def work_off(
    tasks: Sequence[tuple[Work, tuple[Any, ...]]], jobs: int, seconds: float
) -> Iterator[Done]:
    """Do ``tasks`` in ``jobs`` processes, each task within ``seconds``; in order of completion."""
    context = multiprocessing.get_context("spawn")
    queue = deque(range(len(tasks)))
    workers: list[_Worker] = []

    def hire() -> _Worker:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)

    def give(worker: _Worker) -> None:
        worker.task = queue.popleft()
        worker.began = time.monotonic()
        worker.pipe.send(tasks[worker.task])

    try:
        for _ in range(min(jobs, len(tasks))):
            workers.append(hire())
            give(workers[-1])
        while workers:
            ready = wait([worker.pipe for worker in workers], timeout=0.1)
            for worker in list(workers):
                done = _progress(worker, worker.pipe in ready, seconds)
                if done is None:
                    continue
                yield done
                if done.outcome in ("crash", "timeout"):
                    worker.stop()
                    workers.remove(worker)
                    if queue:
                        workers.append(hire())
                        give(workers[-1])
                elif queue:
                    give(worker)
                else:
                    worker.stop()
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.stop()


def _progress(worker: _Worker, ready: bool, seconds: float) -> Done | None:
    assert worker.task is not None
    spent = time.monotonic() - worker.began
    if ready:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(1)
            detail = f"the process ended with status {worker.process.exitcode}"
            return Done(worker.task, "crash", {}, detail, spent)
        if "error" in message:
            return Done(worker.task, "error", {}, message["error"], spent)
        return Done(worker.task, "pass", message["reply"], "", spent)
    if spent > seconds:
        return Done(worker.task, "timeout", {}, f"no answer within {seconds:g} s", spent)
    return None


# Runs


def run_vectors(
    targets: Sequence[str],
    vectors: Sequence[Case],
    *,
    jobs: int = 1,
    seconds: float = CASE_SECONDS,
) -> Iterator[Result]:
    """Every target on every vector, in order of completion."""
    pairs = [(target, case) for case in vectors for target in targets]
    tasks: list[tuple[Work, tuple[Any, ...]]] = [
        (_on_vector, (target, case.stream)) for target, case in pairs
    ]
    for done in work_off(tasks, jobs, seconds):
        target, case = pairs[done.task]
        expect = case.expect["savevm"] if case.verdict == "either" else case.expect
        answered = done.outcome == "pass"
        yield Result(
            target=target,
            case=case.id,
            area=case.area,
            verdict=case.verdict,
            outcome=judge(target, case, done.reply) if answered else done.outcome,
            expected=_said(expect),
            got=_said(done.reply) if answered else done.detail,
            seconds=done.seconds,
        )


def stream_files(directory: Path) -> tuple[Path, ...]:
    """The streams in a directory: ``*.bin`` and ``*.bin.xz``, by name."""
    return tuple(sorted([*directory.glob("*.bin"), *directory.glob("*.bin.xz")]))


def run_streams(
    targets: Sequence[str],
    files: Sequence[Path],
    *,
    jobs: int = 1,
    seconds: float = STREAM_SECONDS,
) -> Iterator[StreamResult]:
    """All targets on every stream, in order of completion."""
    tasks: list[tuple[Work, tuple[Any, ...]]] = [
        (_on_stream, (tuple(targets), path)) for path in files
    ]
    for done in work_off(tasks, jobs, seconds):
        problems = tuple(done.reply["problems"]) if done.outcome == "pass" else (done.detail,)
        outcome: Outcome = "fail" if done.outcome == "pass" and problems else done.outcome
        yield StreamResult(
            file=files[done.task].name,
            outcome=outcome,
            problems=problems,
            opaque=done.reply.get("opaque", {}),
            seconds=done.seconds,
        )


def sha256(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()
