"""Runs targets on vectors and on whole streams, each through its adapter, several at a time."""

import contextlib
import hashlib
import json
import lzma
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from savevm_conformance.cases import Case
from savevm_conformance.judge import Judgement, judge, judge_writing, judge_written, said
from savevm_conformance.known import Known
from savevm_conformance.protocol.client import Adapter, AdapterError
from savevm_conformance.results import OUTCOMES, Outcome, Result, StreamResult, Target
from savevm_conformance.targets import command_of
from savevm_conformance.transcripts import difference, opaque, sections

__all__ = [
    "CASE_SECONDS",
    "MEMORY",
    "STREAM_SECONDS",
    "Crew",
    "Limits",
    "introduce",
    "pairs",
    "run_case",
    "run_cases",
    "run_streams",
    "stream_files",
]

CASE_SECONDS: Final = 20.0
STREAM_SECONDS: Final = 600.0
MEMORY: Final = 4 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one case: seconds, and bytes of memory for an adapter with its children."""

    seconds: float = CASE_SECONDS
    memory: int = MEMORY


def introduce(target: str) -> Target:
    """A target, as its adapter introduces itself.

    Raises:
        ValueError: there is no such target, or its adapter does not start.
    """
    adapter = Adapter(command_of(target), seconds=CASE_SECONDS)
    try:
        hello = adapter.hello()
    except AdapterError as error:
        raise ValueError(f"{target}: {error}") from error
    finally:
        adapter.bye()
    who = hello["implementation"]
    return Target(
        target,
        who["name"],
        who["version"],
        who.get("url"),
        tuple(hello["roles"]),
        tuple(hello.get("features", ())),
        tuple(hello.get("says", ())),
    )


class Crew:
    """The adapters of one thread, by target; each is started when it is first needed.

    They write into ``directory``.
    """

    def __init__(self, limits: Limits, directory: Path) -> None:
        self.directory: Final = directory
        self._limits: Final = limits
        self._adapters: dict[str, Adapter] = {}
        self._stopped = False

    def ask(self, target: str, message: dict[str, Any]) -> dict[str, Any]:
        """The reply of a target; that an adapter failed is an outcome, too."""
        if self._stopped:
            raise InterruptedError
        if target not in self._adapters:
            argv, limits = command_of(target), self._limits
            self._adapters[target] = Adapter(argv, seconds=limits.seconds, memory=limits.memory)
        try:
            return self._adapters[target].case(message)
        except AdapterError as error:
            return {"id": message["id"], "outcome": error.outcome, "why": str(error)}

    def dismiss(self) -> None:
        """End them all."""
        for adapter in self._adapters.values():
            adapter.bye()

    def stop(self) -> None:
        """End them at once, from another thread."""
        self._stopped = True
        for adapter in list(self._adapters.values()):
            adapter.interrupt()


# What a thread does with its crew.
_Task = Callable[[Crew], Any]


def _work_off(tasks: Sequence[_Task], jobs: int, limits: Limits) -> Iterator[Any]:
    """What the tasks give, done by ``jobs`` threads, in order of completion."""
    waiting: queue.SimpleQueue[_Task] = queue.SimpleQueue()
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work(crew: Crew) -> None:
        try:
            with contextlib.suppress(queue.Empty):
                while True:
                    done.put(waiting.get_nowait()(crew))
        except BaseException as error:
            done.put(error)
        finally:
            crew.dismiss()

    with ExitStack() as stack:
        crews = []
        for _ in range(min(jobs, len(tasks))):
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="savevm-"))
            crews.append(Crew(limits, Path(directory)))
        threads = [threading.Thread(target=work, args=(crew,), daemon=True) for crew in crews]
        for thread in threads:
            thread.start()
        try:
            for _ in tasks:
                result = done.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        except BaseException:
            # Whoever has seen enough, or was interrupted, does not wait for a case to end.
            while running := [thread for thread in threads if thread.is_alive()]:
                for crew in crews:
                    crew.stop()
                running[0].join(0.1)
            raise
        for thread in threads:
            thread.join()


# Vectors


def pairs(
    targets: Sequence[Target], cases: Sequence[Case], role: str | None
) -> list[tuple[Target, Case, str]]:
    """What is to be run: every target in each of its roles, or only in one, on the cases for it."""
    return [
        (target, case, each)
        for case in cases
        for target in targets
        for each in case.roles
        if each in target.roles and role in (None, each)
    ]


def run_cases(
    work: Sequence[tuple[Target, Case, str]],
    known: dict[str, list[Known]],
    *,
    jobs: int = 1,
    limits: Limits = Limits(),
) -> Generator[Result, None, None]:
    """Run what `pairs` gives, in order of completion; ``known`` are known failures by target."""

    def task(target: Target, case: Case, role: str) -> _Task:
        return lambda crew: run_case(crew, target, case, role, known.get(target.target, []))

    yield from _work_off([task(*each) for each in work], jobs, limits)


def run_case(
    crew: Crew, target: Target, case: Case, role: str, known: Sequence[Known] = ()
) -> Result:
    """Run a target on a case in a role; ``known`` are its known failures."""
    began = time.monotonic()
    # Who loads into a machine, or writes its state, has what the machine has.
    features = set(target.features) if case.machine is None or role == "reader" else case.requires
    lacks = sorted(case.requires - features)
    if lacks:
        judgement = Judgement("skip", said(case.expect), f"it does not declare {', '.join(lacks)}")
    elif role in ("reader", "loader"):
        reply = crew.ask(target.target, case.message(role))
        judgement = judge(case, role, target, reply)
    else:
        judgement = _written(crew, target, case, role)
    covered = [entry for entry in known if entry.covers(case.id, role)]
    failed = judgement.outcome not in ("pass", "skip")
    reasons = [entry.why for entry in covered if entry.expects(judgement.outcome)]
    return Result(
        target=target.target,
        case=case.id,
        area=case.area,
        verdict=case.verdict,
        role=role,
        rules=case.rules,
        outcome=judgement.outcome,
        expected=judgement.expected,
        got=judgement.got,
        detail=judgement.detail,
        known=reasons[0] if failed and reasons else None,
        unexpected=judgement.outcome == "pass" and bool(covered),
        seconds=round(time.monotonic() - began, 4),
    )


def _written(crew: Crew, target: Target, case: Case, role: str) -> Judgement:
    output, transcript = crew.directory / "written.bin", crew.directory / "transcript.json"
    for path in (output, transcript):
        path.unlink(missing_ok=True)
    reply = crew.ask(target.target, case.message(role) | {"output": str(output)})
    if (refusal := judge_writing(case, reply)) is not None:
        return refusal
    if not output.is_file():
        return Judgement("fail", "written", "nothing was written")
    # What was written is read by the grammar, which is nobody's implementation.
    message = {"id": case.id, "role": "reader", "stream": str(output), "explain": str(transcript)}
    reading = crew.ask("spec", message)
    found = sections(json.loads(transcript.read_text("utf-8"))) if transcript.is_file() else []
    return judge_written(case, reading, found)


# Whole streams


def stream_files(directory: Path) -> tuple[Path, ...]:
    """The streams in a directory: ``*.bin`` and ``*.bin.xz``, by name."""
    return tuple(sorted([*directory.glob("*.bin"), *directory.glob("*.bin.xz")]))


def read_stream(path: Path) -> bytes:
    """The bytes of a ``.bin`` or ``.bin.xz`` file."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def run_streams(
    targets: Sequence[Target],
    files: Sequence[Path],
    *,
    jobs: int = 1,
    limits: Limits = Limits(STREAM_SECONDS),
) -> Generator[StreamResult, None, None]:
    """All targets that say transcripts on every stream, in order of completion.

    Each accepts it and writes it again as it was, and all say the same of it.
    """
    readers = [target for target in targets if "transcript" in target.says]

    def task(path: Path) -> _Task:
        return lambda crew: _on_stream(crew, readers, path)

    yield from _work_off([task(path) for path in files], jobs, limits)


def _on_stream(crew: Crew, targets: Sequence[Target], path: Path) -> StreamResult:
    began = time.monotonic()
    problems: list[str] = []
    outcome: Outcome = "pass"
    opaques: dict[str, int] = {}
    try:
        data = read_stream(path)
        plain = path if path.suffix != ".xz" else crew.directory / "stream.bin"
        if plain != path:
            plain.write_bytes(data)
    except (OSError, EOFError, lzma.LZMAError) as error:
        targets, outcome = (), "error"
        problems.append(f"it cannot be read: {error}")
    first: tuple[str, Any, Any] | None = None
    for target in targets:
        explain = crew.directory / "transcript.json"
        explain.unlink(missing_ok=True)
        message = {"id": path.name, "role": "reader", "stream": str(plain), "explain": str(explain)}
        reply = crew.ask(target.target, message)
        if (got := reply["outcome"]) != "accept":
            problems.append(f"{target.target}: {said(reply)} {reply.get('why', '')}".strip())
            outcome = got if got in OUTCOMES else "fail"
            continue
        if reply.get("rebuilt") not in (None, hashlib.sha256(data).hexdigest()):
            problems.append(f"{target.target}: read and written again it is not the same")
        whole = json.loads(explain.read_text("utf-8")) if explain.is_file() else None
        one = target.target, reply.get("transcript"), whole
        if first is None:
            first, opaques = one, opaque(whole) if whole else {}
        elif first[1] != one[1]:
            where = difference(first[2], whole) if first[2] and whole else None
            problems.append(f"{first[0]} and {one[0]} differ: {where or 'transcript'}")
    return StreamResult(
        file=path.name,
        outcome="fail" if problems and outcome == "pass" else outcome,
        problems=tuple(problems),
        opaque=opaques,
        seconds=round(time.monotonic() - began, 4),
    )
