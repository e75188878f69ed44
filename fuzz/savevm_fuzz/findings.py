"""What fuzzing finds: told apart by signature, made small, kept with all that it takes to see it again."""

import hashlib
import json
import re
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from savevm_conformance import __version__
from savevm_conformance.judge import said
from savevm_fuzz.mutations import Mutation
from savevm_fuzz.oracle import disagreement
from savevm_fuzz.targets import Quick, Staying, Target
from savevm_fuzz.targets.limits import DiedError, apart
from savevm_spec.fields import fields

__all__ = [
    "Finding",
    "Known",
    "Look",
    "examine",
    "examine_apart",
    "known_findings",
    "led_by",
    "minimize",
    "read_finding",
    "shrink",
    "stream_of",
]

_FRAME: Final = re.compile(r'File ".*?([^/"]*)", line \d+, in (\S+)')
_ASSERTION: Final = re.compile(r"[\w.-]+:\d+:.*(?:[Aa]ssert|abort).*")
_VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-fA-F]{8,}\b|\d+|'[^']*'|\"[^\"]*\"")
# Frames and characters of a signature, and characters of a directory's name.
_FRAMES: Final = 3
_LONGEST: Final = 160
_SLUG: Final = 60
# How many fields may go with the number before them.
_COUNTED: Final = (6, 3, 1)
# Lines and characters that are kept of why there was no verdict.
_WHY: Final = 3000
# How often a stream is run to make it smaller; one that takes all its time only so often.  And for how
# many seconds.
_SHRINKING: Final = 500
_SHRINKING_SLOW: Final = 12
_SHRINKING_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """What a target made of a stream.  ``kind`` is None if that was as predicted."""

    predicted: dict[str, Any] | None
    got: dict[str, Any]
    kind: str | None = None
    signature: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that should not be: ``look`` says what, ``data`` is the stream, kept as ``file``.

    ``seed`` and ``mutations`` tell where the stream came from, before it was made smaller.
    """

    target: str
    name: str
    version: str
    look: Look
    data: bytes
    seed: str
    mutations: tuple[Mutation, ...]
    file: str = "stream.bin"

    @property
    def signature(self) -> str:
        """The same for what probably has the same cause."""
        return self.look.signature

    @property
    def slug(self) -> str:
        """A name for a directory."""
        words = re.sub(r"[^a-z0-9]+", "-", self.signature.lower()).strip("-")[:_SLUG].strip("-")
        return f"{words}-{hashlib.sha256(self.signature.encode()).hexdigest()[:8]}"

    def told(self) -> dict[str, Any]:
        """All but the bytes, as JSON has it."""
        return {
            "signature": self.signature,
            "outcome": self.look.kind,
            "target": self.target,
            "implementation": {"name": self.name, "version": self.version},
            "savevm": __version__,
            "lines": list(self.look.lines),
            "predicted": self.look.predicted,
            "got": self.look.got,
            "bytes": len(self.data),
            "sha256": hashlib.sha256(self.data).hexdigest(),
            "seed": self.seed,
            "mutations": [m._asdict() | {"rules": sorted(m.rules or ())} for m in self.mutations],
        }

    def save(self, root: Path) -> Path:
        """Write ``<slug>/{<file>,finding.json,README}`` under ``root``; a smaller one stays."""
        directory = root / self.slug
        stream = directory / self.file
        if stream.is_file() and (stream.stat().st_size, stream.read_bytes()) <= self._order:
            return directory
        directory.mkdir(parents=True, exist_ok=True)
        stream.write_bytes(self.data)
        told = self.told() | {"date": datetime.now(UTC).isoformat(timespec="seconds")}
        (directory / "finding.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        text = "\n".join([self.signature, *self.look.lines])
        text += f"\n\nTo see it again: savevm fuzz '{self.target}' --replay {stream.name}\n"
        (directory / "README").write_text(text, "utf-8", "backslashreplace")
        return directory

    @property
    def _order(self) -> tuple[int, bytes]:
        return len(self.data), self.data

    def better(self, other: "Finding | None") -> bool:
        """Whether it is the one to keep of two with the same signature, whichever came first."""
        return other is None or self._order < other._order


def read_finding(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The stream (or state) of a file or a finding's directory, and what is told of it, if anything.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    stream = stream_of(path)
    beside = stream.parent / "finding.json"
    told = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
    if not isinstance(told, dict):
        raise ValueError(f"{beside}: no finding")
    return stream.read_bytes(), told


def led_by(got: dict[str, Any]) -> list[bytes]:
    """What a machine had loaded before a stream, where it does not come to that reply without."""
    return [bytes.fromhex(each) for each in got.get("before") or ()]


def stream_of(path: Path) -> Path:
    """The file with the stream, or state, of a finding's directory; any other is one itself."""
    if not path.is_dir():
        return path
    state = path / "state.json"
    return state if state.is_file() else path / "stream.bin"


# Looking


def examine(
    target: Target, data: bytes, *, quick: bool = False, before: Sequence[bytes] = ()
) -> Look:
    """Run a stream and compare; if ``quick``, only with what must hold of every stream.

    ``before`` is what a machine has to load first.
    """
    if before and isinstance(target, Staying):
        target.after(before)
    if quick and isinstance(target, Quick):
        return look(None, target.quick(data), target.says)
    predicted = target.predict(data)
    if predicted["outcome"] == "skip":
        return look(None, target.run(data), target.says)
    if predicted["outcome"] not in ("accept", "reject"):
        unpredicted = look(None, predicted, target.says)
        return replace(unpredicted, signature=f"prediction: {unpredicted.signature}")
    return look(predicted, target.run(data), target.says)


def examine_apart(target: Target, data: bytes, seconds: float) -> Look:
    """As ``examine``, of a target in this process, which may not outlive it."""
    try:
        return apart(lambda data: examine(target, data), data, seconds)
    except DiedError as error:
        return look(None, error.reply, target.says)


def look(predicted: dict[str, Any] | None, got: dict[str, Any], says: Sequence[str]) -> Look:
    """What there is to say of a reply; ``predicted`` is None where nothing is."""
    outcome = got["outcome"]
    if outcome == "skip":
        return Look(predicted, got)
    if outcome in ("accept", "reject"):
        found = disagreement(predicted, got, says) if predicted is not None else None
        if found is None:
            return Look(predicted, got)
        # A machine has a reason of its own, and more than one way to load.
        signature = " because ".join(filter(None, [found.signature, got.get("cause")]))
        ways = tuple(f"{way}: {got[way]}" for way in ("incoming", "loadvm") if way in got)
        lines = (*found.lines, *ways)
        return Look(predicted, got, "disagreement", signature[:_LONGEST], lines)
    kind = outcome if outcome in ("crash", "timeout", "memory") else "error"
    why = str(got.get("why", f"the outcome {outcome!r}"))[-_WHY:]
    key = _where(why)
    if kind in ("timeout", "memory"):
        key = said(predicted).partition(" at ")[0] if predicted else "unpredicted"
    return Look(predicted, got, kind, f"{kind}: {key}"[:_LONGEST], tuple(why.splitlines()))


def _where(why: str) -> str:
    """What is the same of two that end in the same place."""
    if match := _ASSERTION.search(why):
        return _VARYING.sub("N", match[0])
    if frames := _FRAME.findall(why):
        raised = why.strip().splitlines()[-1].partition(":")[0]
        return " ".join([raised, "in", *(f"{file}:{name}" for file, name in frames[-_FRAMES:])])
    return _VARYING.sub("N", why.partition("\n")[0])


# Shrinking


def shrink(finding: Finding, look_at: Callable[[bytes], Look], most: int | None = None) -> Finding:
    """The same with a smaller stream; ``look_at`` runs one, ``most`` times or less."""
    latest = finding.look
    end = time.monotonic() + _SHRINKING_SECONDS

    def still(data: bytes) -> bool:
        nonlocal latest
        if time.monotonic() > end:
            return False
        seen = look_at(data)
        if seen.signature != finding.signature:
            return False
        latest = seen
        return True

    usual = _SHRINKING_SLOW if finding.look.kind in ("timeout", "memory") else _SHRINKING
    data = minimize(finding.data, still, min(most or usual, usual))
    return replace(finding, data=data, look=latest)


def minimize(data: bytes, still: Callable[[bytes], bool], most: int) -> bytes:
    """A smaller stream of which ``still`` holds, as of ``data``, asked ``most`` times or less.

    Records are left out, then fields, then any bytes; what must be there becomes 00.
    """
    left = most

    def holds(candidate: bytes) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and still(candidate)

    before = None
    while before != data and left > 0:
        before = data
        data = _without(_records(data), holds)
        data = _without(_fields(data), holds)
        data = _uncounted(data, holds)
        data = _without(_bytes(data), holds)
        data = _zeroed(data, holds)
    return data


def _records(data: bytes) -> list[bytes]:
    of_record = [f for f in fields(data)[0] if f.path.startswith("body.records.")]
    return _split(data, [f.offset for f in of_record if f.path == of_record[0].path])


def _fields(data: bytes) -> list[bytes]:
    return _split(data, [f.offset for f in fields(data)[0]])


def _bytes(data: bytes) -> list[bytes]:
    return _split(data, range(len(data)))


def _split(data: bytes, offsets: Iterable[int]) -> list[bytes]:
    return [data[begin:end] for begin, end in pairwise(sorted({0, *offsets, len(data)}))]


def _without(units: list[bytes], holds: Callable[[bytes], bool]) -> bytes:
    """The units that must be there: runs of them are left out, from half of them to single ones."""
    size = max(1, len(units) // 2)
    while units and size:
        # What stands behind what matters is seldom looked at.
        for end in range(len(units), 0, -size):
            fewer = units[: max(0, end - size)] + units[end:]
            if len(fewer) < len(units) and holds(b"".join(fewer)):
                units = fewer
        size //= 2
    return b"".join(units)


def _uncounted(data: bytes, holds: Callable[[bytes], bool]) -> bytes:
    """Without what stands behind a number that counts or measures it."""
    at = 0
    while at < len(units := _fields(data)):
        before, number, after = units[:at], units[at], units[at + 1 :]
        at += 1
        if len(number) in (1, 2, 4, 8) and any(number):
            for kept in _fewer(number, after):
                if holds(candidate := b"".join([*before, *kept])):
                    data = candidate
                    break
    return data


def _fewer(number: bytes, after: list[bytes]) -> Iterator[list[bytes]]:
    """A number that may be of what is after it, and less of that."""
    zero = bytes(len(number))
    # What has flags in its low byte keeps them.
    for new in (zero, zero[1:] + number[-1:]):
        for count in _COUNTED:
            yield [new, *after[count:]]
    if after and 1 < int.from_bytes(number) == len(after[0]):
        yield [zero[1:] + b"\1", after[0][:1], *after[1:]]


def _zeroed(data: bytes, holds: Callable[[bytes], bool]) -> bytes:
    size = len(data)
    while size:
        for begin in range(0, len(data), size):
            end = min(begin + size, len(data))
            zeros = bytes(end - begin)
            candidate = data[:begin] + zeros + data[end:]
            if data[begin:end] != zeros and holds(candidate):
                data = candidate
        size //= 2
    return data


# Known findings


@dataclass(frozen=True, slots=True)
class Known:
    """Signatures (a glob) that are known, and why; of one implementation, where it is named."""

    signature: str
    why: str
    name: str | None = None
    url: str | None = None

    def covers(self, name: str, signature: str) -> bool:
        """Whether it speaks of a finding."""
        return self.name in (None, name) and fnmatchcase(signature, self.signature)


def known_findings(name: str, extra: Path | None = None, *, ours: bool = True) -> list[Known]:
    """The entries ``[[finding]]`` of the file ``extra`` and, with ``ours``, of those kept here.

    Those are called like the implementation: ``qemu.toml``.

    Raises:
        OSError, ValueError: a file is not one of known findings.
    """
    kept = files("savevm_fuzz").joinpath("known", f"{name.lower().replace(' ', '-')}.toml")
    found = _entries(kept.read_text("utf-8"), str(kept)) if ours and kept.is_file() else []
    return found + (_entries(extra.read_text("utf-8"), str(extra)) if extra is not None else [])


def _entries(text: str, file: str) -> list[Known]:
    try:
        return [Known(**entry) for entry in tomllib.loads(text)["finding"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error!r} in a list of known findings") from error
