"""Vectors as files: ``<area>/<verdict>/<slug>/{case.toml,stream.bin,expect.json}``.

Everything in them comes from the tables, but for the digest of an accepted vector's transcript
(and the summary): both of our implementations make it, and it is written only when they agree.
It stays as it is while the vector's bytes do, so writing again needs no implementation.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from savevm_conformance.adapters import OURS, load
from savevm_conformance.generate import vectors
from savevm_conformance.generate.model import Accepted, Vector
from savevm_conformance.runner import VERDICTS, sha256, verdict_of
from savevm_conformance.transcripts import difference, summary

SUMMARY_LINES: Final = 40
Recorded = dict[str, Any]


class DisagreementError(Exception):
    """The implementations do not agree with each other or with what a vector declares."""


def render(vector: Vector, recorded: Recorded | None) -> dict[str, bytes]:
    """The files of a vector by name; ``recorded`` has the digest (and summary) of an accept."""
    return {
        "case.toml": _case(vector).encode(),
        "stream.bin": vector.data,
        "expect.json": (json.dumps(_expect(vector, recorded), indent=1) + "\n").encode(),
    }


def _case(vector: Vector) -> str:
    entries: list[tuple[str, str | None]] = [
        ("id", vector.id),
        ("description", vector.description),
        ("source", vector.source),
        ("change", vector.change),
        ("sha256", sha256(vector.data)),
        ("notes", vector.notes),
    ]
    rules = ", ".join(json.dumps(rule) for rule in vector.rules)
    lines = [f"{key} = {json.dumps(value)}" for key, value in entries if value is not None]
    lines.insert(2, f"rules = [{rules}]")
    return "\n".join(lines) + "\n"


def _expect(vector: Vector, recorded: Recorded | None) -> dict[str, Any]:
    expect = vector.expect
    plain: dict[str, Any]
    if isinstance(expect, Accepted):
        assert recorded is not None
        plain = {
            "verdict": "accept",
            "dialect": expect.dialect,
            "findings": [
                {"rule": f.rule, "offset": f.offset, "section": f.section} for f in expect.findings
            ],
            **recorded,
        }
    else:
        plain = {
            "verdict": "reject",
            "rule": expect.rule,
            "offset": expect.offset,
            "section": expect.section,
            "errno": expect.errno,
        }
    return plain if vector.verdict != "either" else {"verdict": "either", "savevm": plain}


def record(vector: Vector) -> Recorded:
    """Digest and summary of an accepted vector, from both implementations.

    Raises:
        DisagreementError: they differ, or what they say is not what the vector declares.
    """
    assert isinstance(vector.expect, Accepted)
    verdicts = {target: verdict_of(load(target), vector.data) for target in OURS}
    (one, (verdict, transcript)), (other, (_, second)) = verdicts.items()
    if found := difference(transcript["error"], second["error"], "error"):
        raise DisagreementError(f"{vector.id}: {one} and {other}: {found}")
    if verdict["verdict"] != "accept":
        raise DisagreementError(f"{vector.id}: {one} and {other} reject it: {verdict}")
    if found := difference(transcript, second):
        raise DisagreementError(f"{vector.id}: {one} and {other}: {found}")
    declared = _expect(vector, {"digest": verdict["digest"], "rebuild": True})
    declared = declared.get("savevm", declared)
    if found := difference(declared, verdict, "declared"):
        raise DisagreementError(f"{vector.id}: declared and {one}: {found}")
    if (rebuilt := verdicts[other][0]["rebuild"]) is not True:
        raise DisagreementError(f"{vector.id}: {other}: {rebuilt}")
    lines = summary(transcript)
    recorded: Recorded = {"digest": verdict["digest"], "rebuild": True}
    if len(lines) <= SUMMARY_LINES:
        recorded["summary"] = lines
    return recorded


def _recorded(vector: Vector, directory: Path) -> Recorded | None:
    """What is on disk already for the same bytes and declaration."""
    try:
        expect = json.loads((directory / "expect.json").read_text("utf-8"))
        stream = (directory / "stream.bin").read_bytes()
    except (OSError, ValueError):
        return None
    expect = expect.get("savevm", expect)
    keys = ("digest", "rebuild", "summary")
    recorded = {key: expect[key] for key in keys if key in expect}
    known = stream == vector.data and "digest" in recorded
    if known and json.loads(render(vector, recorded)["expect.json"]) in (
        expect,
        {"verdict": "either", "savevm": expect},
    ):
        return recorded
    return None


def generate(
    root: Path,
    *,
    check: bool = False,
    afresh: bool = False,
    problem: Callable[[str], None] = print,
) -> int:
    """Write all vectors under ``root``; how many files were not as they should be.

    Args:
        check: write nothing.
        afresh: make every digest anew.
        problem: told of each difference (when checking) and each disagreement.
    """
    count = 0
    wanted = vectors()
    for vector in wanted.values():
        directory = root / vector.id
        recorded = None
        if isinstance(vector.expect, Accepted):
            recorded = None if afresh else _recorded(vector, directory)
            if recorded is None:
                try:
                    recorded = record(vector)
                except DisagreementError as error:
                    problem(str(error))
                    count += 1
                    continue
        for name, content in render(vector, recorded).items():
            path = directory / name
            if path.is_file() and path.read_bytes() == content:
                continue
            count += 1
            if check:
                problem(f"{vector.id}/{name} differs")
            else:
                directory.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return count + _stale(root, wanted, check, problem)


def _stale(
    root: Path, wanted: dict[str, Vector], check: bool, problem: Callable[[str], None]
) -> int:
    count = 0
    for verdict in VERDICTS:
        for directory in sorted(root.glob(f"*/{verdict}/*")):
            id = "/".join(directory.parts[-3:])
            if id in wanted:
                continue
            count += 1
            if check:
                problem(f"{id} is nobody's")
            else:
                shutil.rmtree(directory)
    return count
