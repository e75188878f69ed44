"""Results as one page: implementations and rules, and behind each rule its vectors, byte by byte.

The page is one file that asks nothing of the network.
"""

import base64
import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

from savevm_conformance.cases import Case, load_cases
from savevm_conformance.locate import vectors_directory
from savevm_conformance.protocol import CLASSES
from savevm_conformance.report.words import STATES, called, plain, state
from savevm_conformance.results import Report
from savevm_conformance.transcripts import records
from savevm_spec.rules import rules

# Bytes of a stream that is embedded whole; of a longer one, its first and those around the offset
# where it is refused.
WHOLE: Final = 4096
FIRST: Final = 1024
AROUND: Final = 256
# Characters of one line of a result that are told.
_LONG: Final = 600


def html(report: Report) -> str:
    """The page."""
    parts = {
        "css": _part("page.css"),
        "js": _part("page.js"),
        # Nothing in it ends the element that it stands in.
        "data": json.dumps(_data(report), separators=(",", ":")).replace("<", "\\u003c"),
    }
    parts |= {f"{key}-hash": _hash(parts[key]) for key in ("css", "js")}
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def _part(file: str) -> str:
    return files(__package__).joinpath(file).read_text("utf-8")


def _hash(text: str) -> str:
    """What the page's content security policy knows an element by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(report: Report) -> dict[str, Any]:
    streams = _Streams()
    cases = {case.id: case for case in _cases()}
    results: dict[str, list[Any]] = {}
    at = {target.target: index for index, target in enumerate(report.targets)}
    for r in report.results:
        told = (r.expected, r.got, [plain(line)[:_LONG] for line in r.detail], r.known)
        entry = [at[r.target], r.role, state(r), r.outcome, *map(_short, told)]
        results.setdefault(r.case, []).append(entry)
    named = Counter(called(target) for target in report.targets)
    return {
        "suite": report.suite,
        "date": report.date,
        "failures": report.failures,
        "states": STATES,
        "targets": [
            {
                "target": plain(target.target),
                "name": plain(target.name),
                "version": plain(target.version),
                "ambiguous": named[called(target)] > 1,
                "url": target.url if str(target.url).startswith(("https://", "http://")) else None,
                "roles": target.roles,
                "says": target.says,
            }
            for target in report.targets
        ],
        "rules": list(_rules(report)),
        "cases": {
            r.case: {
                "area": r.area,
                "verdict": r.verdict,
                "rules": r.rules,
                "results": results[r.case],
                **(_case(cases[r.case], cases, streams) if r.case in cases else {}),
            }
            for r in {r.case: r for r in report.results}.values()
        },
        "bytes": streams.pieces,
        "streams": [
            {
                "file": plain(stream.file),
                "outcome": stream.outcome,
                "problems": [plain(problem)[:_LONG] for problem in stream.problems],
                "opaque": sum(stream.opaque.values()),
            }
            for stream in report.streams
        ],
    }


def _short(value: Any) -> Any:
    return plain(value)[:_LONG] if isinstance(value, str) else value


def _cases() -> tuple[Case, ...]:
    # Results can be looked at where the vectors are not.
    try:
        return load_cases(vectors_directory())
    except FileNotFoundError:
        return ()


def _rules(report: Report) -> Iterator[dict[str, Any]]:
    """The rules in their order, then what results cite besides."""
    without = _without()
    for rule in rules().values():
        entry = rule._asdict()
        entry["class"] = CLASSES.get(entry.pop("errno"))
        yield {key: value for key, value in entry.items() if value is not None} | (
            {"without": without[rule.id]} if rule.id in without else {}
        )
    cited = {rule for result in report.results for rule in result.rules}
    for rule_id in sorted(cited - rules().keys()):
        yield {
            "id": rule_id,
            "level": "",
            "binds": [],
            "sentence": "This release has no such rule.",
        }


def _without() -> dict[str, str]:
    """Why a rule has no vector."""
    try:
        text = (vectors_directory() / "without-vector.toml").read_text("utf-8")
    except FileNotFoundError:
        return {}
    return {rule: each["why"] for each in tomllib.loads(text)["without"] for rule in each["rules"]}


class _Streams:
    """Bytes in base64, each once."""

    def __init__(self) -> None:
        self.pieces: Final[list[str]] = []
        self._index: Final[dict[bytes, int]] = {}

    def add(self, data: bytes) -> int:
        """The place of ``data`` in `pieces`."""
        if data not in self._index:
            self._index[data] = len(self.pieces)
            self.pieces.append(base64.b64encode(data).decode())
        return self._index[data]


def _case(case: Case, cases: dict[str, Case], streams: _Streams) -> dict[str, Any]:
    """What the page tells of a vector besides its results."""
    entry = tomllib.loads((case.directory / "case.toml").read_text("utf-8"))
    told: dict[str, Any] = {
        key: entry[key] for key in ("source", "change", "notes", "sha256") if key in entry
    }
    told |= {"description": case.description, "requires": sorted(case.requires)}
    if case.machine is not None:
        told["machine"] = " ".join([case.machine["arch"], *case.machine.get("argv", ())])
    if case.verdict == "write":
        return told | {"state": case.state.read_text("utf-8")[:WHOLE]}
    data = case.stream.read_bytes()
    expect = case.expect.get("savevm", case.expect)
    offset = expect.get("offset")
    ranges = [(0, len(data))]
    if len(data) > WHOLE:
        ranges = [(0, FIRST)]
        if offset is not None and offset + AROUND // 2 > FIRST:
            ranges.append((max(FIRST, offset - AROUND // 2), min(len(data), offset + AROUND // 2)))
    # Where it is made of another vector, that one has records behind the last that was read here.
    origin = cases.get(entry["source"].partition(" ")[0])
    return told | {
        "size": len(data),
        "bytes": [[start, streams.add(data[start:end])] for start, end in ranges],
        "notes_at": list(_notes(data, origin.stream.read_bytes() if origin else b"", expect)),
    }


def _notes(data: bytes, origin: bytes, expect: dict[str, Any]) -> Iterator[tuple[int, str, str]]:
    """What stands where: offset in bytes, "record", "finding" or "error", and the text."""
    read = _records(data)
    for offset, text in read:
        yield offset, "record", text
    if "offset" in expect:
        pairs = enumerate(zip(data, origin, strict=False))
        same = next((at for at, (one, other) in pairs if one != other), len(data))
        for offset, text in _records(origin):
            if (read[-1][0] if read else -1) < offset <= min(same, expect["offset"]):
                yield offset, "record", f"{text.partition(' ')[0]} …"
    for finding in expect.get("findings", ()):
        yield finding["offset"], "finding", finding["rule"]
    if "offset" in expect:
        yield expect["offset"], "error", f"{expect['rule']}: {expect.get('class', 'reject')}"


@lru_cache(maxsize=64)
def _records(data: bytes) -> list[tuple[int, str]]:
    """The records and footers up to the end or the first error, as the grammar reads them."""
    from savevm_spec import stream

    lines = (line.partition(" ") for line in records(stream.transcript(stream.parse(data))))
    return [(int(offset), text) for offset, _, text in lines]
