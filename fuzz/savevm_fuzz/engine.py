"""A campaign: processes that change streams, run them and keep what is new.

Each worker has its own random numbers, pool and target, and tells of what it finds through a pipe.
What it is about to run stands in memory that it shares, so that it is known what ended it.  The same
seed, number of workers and of executions give the same findings.
"""

import contextlib
import hashlib
import mmap
import multiprocessing
import os
import pickle
import signal
import struct
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any, Final

from savevm_fuzz.findings import (
    Finding,
    Known,
    Look,
    examine,
    examine_apart,
    led_by,
    look,
    shrink,
)
from savevm_fuzz.mutations import Mutant, mutate
from savevm_fuzz.seeds import Seed, seeds
from savevm_fuzz.targets import SECONDS, Quick, Target, open_target
from savevm_fuzz.targets.limits import GRACE, died, late

__all__ = ["Campaign", "Introduced", "Stats", "found", "introduce"]

# Mutations of one stream, by how often there are so many.
_TIMES: Final = (1, 2, 3, 4)
_OFTEN: Final = (8, 4, 2, 1)
# Streams of new paths that a worker keeps, and how often one of them is taken, or a seed.
_POOL: Final = 4096
_NEWER: Final = 0.5
# Seconds between two reports of a worker, and two looks for what others have put into the corpus.
_REPORT: Final = 0.25
_SHARE: Final = 10.0
# Bytes that a worker shares: what it is about to run, pickled.
_BOARD: Final = 4 << 20
_HEAD: Final = struct.Struct("QI")
# How often what a machine loads otherwise is loaded to make it smaller: each takes a new machine.
_ALONE: Final = 100
# Seconds for the workers to end when told to.
_END: Final = 10.0


@dataclass(frozen=True, slots=True)
class Introduced:
    """A target: as it is called on the command line, and as it calls itself."""

    target: str
    name: str
    version: str
    quick: bool
    here: bool
    loads: bool


def introduce(target: str, seconds: float = SECONDS) -> Introduced:
    """A target, opened and closed again; raises ``ValueError`` where that cannot be."""
    opened = open_target(target, seconds=seconds)
    try:
        return Introduced(
            target,
            opened.name,
            opened.version,
            isinstance(opened, Quick),
            target in ("reference", "spec"),
            bool(getattr(opened, "loads", target.startswith("qemu:"))),
        )
    finally:
        opened.close()


@dataclass(frozen=True, slots=True)
class Stats:
    """How far a campaign is: ``corpus`` is the streams that are changed, ``seconds`` since it began."""

    executions: int = 0
    compared: int = 0
    paths: int = 0
    corpus: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.executions + other.executions,
            self.compared + other.compared,
            self.paths + other.paths,
            self.corpus + other.corpus,
            max(self.seconds, other.seconds),
        )


@dataclass(frozen=True, slots=True)
class Campaign:
    """What to do: until ``executions`` or ``duration``, in seconds; every ``compare``-th is compared.

    ``corpus`` is a directory of streams that lead to new paths, which others may share.  What is
    ``known`` is not made smaller.
    """

    target: Introduced
    seed: int
    jobs: int = 1
    executions: int | None = None
    duration: float | None = None
    compare: int = 1
    corpus: Path | None = None
    seconds: float = SECONDS
    memory: int | None = None
    known: tuple[Known, ...] = ()

    def run(self) -> Generator[Stats | Finding, None, Stats]:
        """Statistics now and then, and each finding (again, if a better stream for it was found).

        Closing it ends the workers.

        Raises:
            RuntimeError: a worker failed, by no fault of the target.
        """
        crew = _Crew(self)
        try:
            yield from crew.work()
        finally:
            crew.end()
        return crew.stats

    def share(self, worker: int) -> int | None:
        """How many executions are up to a worker."""
        if self.executions is None:
            return None
        return self.executions // self.jobs + (worker < self.executions % self.jobs)


# The parent


@dataclass(slots=True)
class _Member:
    number: int
    process: BaseProcess
    pipe: Connection
    board: "_Board"
    before: Stats
    stats: Stats = Stats()
    beat: tuple[int, float] = (0, 0.0)
    hung: bool = False
    done: bool = False


class _Crew:
    """The workers, as their parent sees them."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign: Final = campaign
        self._began: Final = time.monotonic()
        self._kept: dict[str, Finding] = {}
        # What all start with is read once.
        self._seeds: Final = _seeds(campaign)
        self._members: list[_Member] = []
        self._context: Final = multiprocessing.get_context("fork")
        for number in range(campaign.jobs):
            self._members.append(self._start(number, Stats()))

    @property
    def stats(self) -> Stats:
        total = sum((m.before + m.stats for m in self._members), Stats())
        return replace(total, seconds=round(time.monotonic() - self._began, 3))

    def _start(self, number: int, before: Stats) -> _Member:
        ours, theirs = self._context.Pipe(duplex=False)
        board = _Board()
        arguments = (self._campaign, number, before.executions, self._seeds, theirs, board)
        process = self._context.Process(target=_main, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Member(number, process, ours, board, before, beat=(0, time.monotonic()))

    def work(self) -> Iterator[Stats | Finding]:
        while running := [m for m in self._members if not m.done]:
            ready = wait([m.pipe for m in running], timeout=_REPORT)
            for member in running:
                if member.pipe in ready:
                    yield from self._hear(member)
                else:
                    self._look_after(member)
            yield self.stats

    def _hear(self, member: _Member) -> Iterator[Finding]:
        try:
            message = member.pipe.recv()
        except EOFError:
            member.process.join()
            yield from self._ended(member)
            return
        match message:
            case Stats():
                member.stats = message
            case Finding():
                yield from self._keep(message)
            case str():
                raise RuntimeError(message)
            case None:
                member.done = True
                member.process.join()

    def _keep(self, finding: Finding) -> Iterator[Finding]:
        if finding.better(self._kept.get(finding.signature)):
            self._kept[finding.signature] = finding
            yield finding

    def _look_after(self, member: _Member) -> None:
        """End a worker that a target in its process holds up, where no signal helps."""
        beat, now = member.board.beat, time.monotonic()
        if beat != member.beat[0]:
            member.beat = (beat, now)
        elif self._campaign.target.here and now - member.beat[1] > self._campaign.seconds + GRACE:
            member.hung = True
            member.process.kill()

    def _ended(self, member: _Member) -> Iterator[Finding]:
        """A worker was ended by what it ran: tell of it, and go on behind it with another."""
        got = died(member.process.exitcode)
        if member.hung:
            got = late(self._campaign.seconds)
        mutant, executions = member.board.read()
        target = self._campaign.target
        if mutant is not None:
            finding = found(target, look(None, got, ()), mutant)
            if finding.signature not in self._kept:
                yield from self._keep(self._smaller(finding))
        before = replace(member.before + member.stats, executions=executions + 1)
        self._members[member.number] = self._start(member.number, before)
        member.pipe.close()

    def _smaller(self, finding: Finding) -> Finding:
        """Shrunk in other processes, which end, too."""
        campaign = self._campaign
        target = open_target(campaign.target.target, seconds=campaign.seconds)

        def look_at(data: bytes) -> Look:
            return examine_apart(target, data, campaign.seconds)

        # Alone it may do otherwise, if what ran before matters.
        same = look_at(finding.data).signature == finding.signature
        return shrink(finding, look_at) if same else finding

    def end(self) -> None:
        """End all workers and what they have started."""
        for member in self._members:
            if member.process.is_alive():
                member.process.terminate()
        deadline = time.monotonic() + _END
        for member in self._members:
            member.process.join(max(0.0, deadline - time.monotonic()))
            member.process.kill()
            member.process.join()
            member.pipe.close()


class _Board:
    """Memory that a worker shares with its parent: how many it has begun, and with what."""

    def __init__(self) -> None:
        self._memory: Final = mmap.mmap(-1, _BOARD)
        self._beat = 0

    def write(self, executions: int, mutant: Mutant) -> None:
        text = pickle.dumps(mutant)
        self._beat += 1
        # Without a length in between: it may end at any time.
        self._memory[: _HEAD.size] = _HEAD.pack(executions, 0)
        if len(text) <= _BOARD - _HEAD.size - 8:
            self._memory[_HEAD.size + 8 : _HEAD.size + 8 + len(text)] = text
            self._memory[: _HEAD.size] = _HEAD.pack(executions, len(text))
        self._memory[_HEAD.size : _HEAD.size + 8] = self._beat.to_bytes(8, "little")

    @property
    def beat(self) -> int:
        return int.from_bytes(self._memory[_HEAD.size : _HEAD.size + 8], "little")

    def read(self) -> tuple[Mutant | None, int]:
        """What was run last, None if nothing was, and how many had been before."""
        executions, length = _HEAD.unpack_from(self._memory)
        if not length:
            return None, executions
        begin = _HEAD.size + 8
        return pickle.loads(self._memory[begin : begin + length]), executions


# A worker


class _StoppedError(BaseException):
    """The parent wants it to end."""


def _main(
    campaign: Campaign,
    number: int,
    begun: int,
    start: Sequence[Seed],
    pipe: Connection,
    board: _Board,
) -> None:
    def stop(*_: object) -> None:
        raise _StoppedError

    # A terminal interrupts all at once, but the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    with contextlib.suppress(_StoppedError, BrokenPipeError):
        try:
            worker = _Worker(campaign, number, begun, start, pipe, board)
            try:
                worker.work()
            finally:
                worker.target.close()
            pipe.send(None)
        except Exception:
            pipe.send(traceback.format_exc())


class _Worker:
    def __init__(
        self,
        campaign: Campaign,
        number: int,
        begun: int,
        start: Sequence[Seed],
        pipe: Connection,
        board: _Board,
    ) -> None:
        self._campaign: Final = campaign
        self._most: Final = campaign.share(number)
        self._parent: Final = os.getppid()
        self._pipe: Final = pipe
        self._board: Final = board
        # Who goes on after another does not do the same again.
        self._random: Final = Random(f"{campaign.seed}/{number}/{begun}")
        self._seeds: Final = list(start)
        # Each stream is run as it is by one of the workers.
        self._whole: Final = start[number :: campaign.jobs][begun:]
        self._pool: list[Seed] = []
        self._paths: set[int] = set()
        self._names = _listed(campaign.corpus)
        self._signatures: set[str] = set()
        self._begun: Final = begun
        self._executions = begun
        self._compared = 0
        self._began: Final = time.monotonic()
        self._reported = self._shared = self._began
        self.target: Final[Target] = open_target(
            campaign.target.target, seconds=campaign.seconds, memory=campaign.memory
        )

    def work(self) -> None:
        """Run streams until there were enough or time is up."""
        for seed in self._whole:
            if self._enough():
                break
            self._execute(Mutant(seed.data, seed.name, ()), known=True)
        while not self._enough():
            self._execute(self._mutant())
        self._report()

    def _enough(self) -> bool:
        now = time.monotonic()
        if now - self._reported > _REPORT:
            self._reported = now
            # Nobody else would end it where the parent was killed.
            if os.getppid() != self._parent:
                raise _StoppedError
            self._report()
        duration = self._campaign.duration
        if duration is not None:
            self._share(now)
            return now - self._began >= duration
        assert self._most is not None
        return self._executions >= self._most

    def _report(self) -> None:
        done = self._executions - self._begun
        self._pipe.send(Stats(done, self._compared, len(self._paths), len(self._pool)))

    def _mutant(self) -> Mutant:
        random = self._random
        newer = self._pool and random.random() < _NEWER
        among = self._pool if newer else self._seeds
        # The smaller one of two: it takes less time, and more of it matters.
        seed = min(random.choice(among), random.choice(among), key=lambda seed: len(seed.data))
        return mutate(seed, random, self._seeds, random.choices(_TIMES, _OFTEN)[0])

    def _execute(self, mutant: Mutant, *, known: bool = False) -> None:
        """Run one; ``known``: it is in the corpus already."""
        quick = self._campaign.target.quick
        seen = self._look(mutant, quick=quick)
        new = (path := _path(seen)) not in self._paths
        self._paths.add(path)
        if new and not known:
            self._take(mutant)
        if quick and seen.kind is None and (new or self._executions % self._campaign.compare == 0):
            seen = self._look(mutant)
            self._compared += 1
        self._compared += not quick
        if seen.kind is not None and seen.signature not in self._signatures:
            self._signatures.add(seen.signature)
            finding = found(self._campaign.target, seen, mutant)
            if not any(k.covers(finding.name, finding.signature) for k in self._campaign.known):
                most = _ALONE if self._campaign.target.loads else None
                before = led_by(seen.got)
                finding = shrink(
                    finding, lambda d: self._look(mutant._replace(data=d), before=before), most
                )
            # Who stops at it knows how many it took.
            self._report()
            self._pipe.send(finding)
        self._executions += 1

    def _look(self, mutant: Mutant, *, quick: bool = False, before: Sequence[bytes] = ()) -> Look:
        self._board.write(self._executions, mutant)
        return examine(self.target, mutant.data, quick=quick, before=before)

    def _take(self, mutant: Mutant) -> None:
        name = hashlib.sha256(mutant.data).hexdigest()[:32]
        seed = Seed(name, mutant.data)
        if len(self._pool) < _POOL:
            self._pool.append(seed)
        else:
            self._pool[self._random.randrange(_POOL)] = seed
        if (corpus := self._campaign.corpus) is not None and name not in self._names:
            self._names.add(name)
            # Others see it as a whole or not at all.
            partial = corpus / f".{name}.{os.getpid()}"
            partial.write_bytes(mutant.data)
            partial.replace(corpus / name)

    def _share(self, now: float) -> None:
        """Take what others have put into the corpus."""
        if self._campaign.corpus is None or now - self._shared < _SHARE:
            return
        self._shared = now
        others = _listed(self._campaign.corpus) - self._names
        self._names |= others
        for seed in _read(self._campaign.corpus, others):
            self._pool.append(seed)
            self._execute(Mutant(seed.data, seed.name, ()), known=True)


def found(target: Introduced, seen: Look, mutant: Mutant) -> Finding:
    """The finding that a look at a mutant is."""
    return Finding(target.target, target.name, target.version, seen, *mutant)


def _path(seen: Look) -> int:
    """What kind of way a stream took through a target, as far as it can be seen from outside."""
    return hash((_traits(seen.got), _traits(seen.predicted or {})))


def _traits(verdict: dict[str, Any]) -> tuple[Any, ...]:
    kinds = verdict.get("kinds") or {line.split(" ")[1] for line in verdict.get("records", ())}
    rules = {finding["rule"] for finding in verdict.get("findings", ())}
    plain = [verdict.get(key) for key in ("outcome", "rule", "class", "cause", "dialect")]
    # Names of sections are as many as there are mutants.
    return (*plain, verdict.get("section") is None, frozenset(rules), frozenset(kinds))


# Corpus


def _seeds(campaign: Campaign) -> tuple[Seed, ...]:
    given = seeds(machine=campaign.target.loads)
    if campaign.corpus is None:
        return given
    return (*given, *_read(campaign.corpus, _listed(campaign.corpus)))


def _listed(corpus: Path | None) -> set[str]:
    if corpus is None:
        return set()
    return {path.name for path in corpus.iterdir() if path.name[0] != "." and path.is_file()}


def _read(corpus: Path, names: set[str]) -> Iterator[Seed]:
    for name in sorted(names):
        with contextlib.suppress(OSError):
            yield Seed(name, (corpus / name).read_bytes())
