"""Vectors as files: ``<area>/<verdict>/<slug>/{case.toml,stream.bin,expect.json}``.

Everything in them comes from the tables, but for what an accepted vector has in it (framing, RAM,
the transcript's digest, the features that it needs): both of our implementations make that, and it is
written only when they agree.  It stays as it is while the vector's bytes do, so writing again needs no
implementation.
"""

import hashlib
import json
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from savevm_conformance.cases import VERDICTS
from savevm_conformance.generate import vectors
from savevm_conformance.generate.model import SPIKE, Accepted, Rejected, Vector
from savevm_conformance.generate.writes import Write, writes
from savevm_conformance.protocol import CLASSES
from savevm_conformance.protocol.client import Adapter
from savevm_conformance.targets import OURS, command_of
from savevm_conformance.transcripts import difference, features
from savevm_conformance.wire import MAIN, MAIN_LENGTH, ROM, ROM_LENGTH

# Lines of framing that an expectation shows.
RECORDS: Final = 200
# What is not declared by the tables, but made by both implementations of an accepted vector.
Recorded = dict[str, Any]
_MADE: Final = ("records", "ram", "transcript")
# What the board of the streams written by hand has.
_BLOCKS: Final = {MAIN.decode(): MAIN_LENGTH, ROM.decode(): ROM_LENGTH}
_DEVICES: Final = {"ram": 4, "timer": 2, "globalstate": 1}


class DisagreementError(Exception):
    """The implementations do not agree with each other or with what a vector declares."""


def render(vector: Vector, made: Recorded) -> dict[str, bytes]:
    """The files of a vector by name; ``made`` is what both implementations have made of it."""
    return {
        "case.toml": _case(vector, made).encode(),
        "stream.bin": vector.data,
        "expect.json": (json.dumps(_expect(vector, made), indent=1) + "\n").encode(),
    }


def render_write(write: Write) -> dict[str, bytes]:
    """The files of a case for writers by name."""
    entries = {
        "id": write.id,
        "description": write.description,
        "rules": list(write.rules),
        "requires": write.requires(),
        "source": "generator",
        "sha256": hashlib.sha256(write.data).hexdigest(),
    }
    return {
        "case.toml": _toml(entries, machine=write.machine).encode(),
        "state.json": write.data,
        "expect.json": (json.dumps(write.expect(), indent=1) + "\n").encode(),
    }


def _case(vector: Vector, made: Recorded) -> str:
    entries = {
        "id": vector.id,
        "description": vector.description,
        "rules": list(vector.rules),
        "requires": _requires(vector, made),
        "source": vector.source,
        "change": vector.change,
        "sha256": hashlib.sha256(vector.data).hexdigest(),
        "notes": vector.notes,
    }
    machine = made.get("machine")
    loader = _loader(vector) if machine else None
    rule = {"verdict": loader, "rule": vector.bound} if loader else None
    return _toml(entries, machine=machine, loader=rule)


def _toml(entries: dict[str, Any], **tables: dict[str, Any] | None) -> str:
    """TOML of what is not None, the entries first."""

    def lines(table: dict[str, Any]) -> list[str]:
        return [f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None]

    text = lines(entries)
    for name, table in tables.items():
        if table is not None:
            text += ["", f"[{name}]", *lines(table)]
    return "\n".join(text) + "\n"


def _loader(vector: Vector) -> str | None:
    """What a machine makes of it; it may refuse a changed vector before it comes to the change."""
    refused = vector.base is not None and _loader(vector.base) == "reject"
    return vector.loader or ("reject" if refused else None)


def _requires(vector: Vector, made: Recorded) -> list[str]:
    """A reader need not know what was changed, but all around it."""
    limited = any(rule.startswith("limit.") for rule in vector.rules)
    limits = {"limits"} if limited and isinstance(vector.expect, Rejected) else set()
    return sorted({*made["requires"], *limits})


def _expect(vector: Vector, made: Recorded) -> dict[str, Any]:
    expect = vector.expect
    plain: dict[str, Any]
    if isinstance(expect, Accepted):
        plain = {
            "verdict": "accept",
            "dialect": expect.dialect,
            "findings": [
                {"rule": f.rule, "offset": f.offset, "section": f.section} for f in expect.findings
            ],
            **{key: made[key] for key in _MADE if key in made},
        }
    else:
        plain = {
            "verdict": "reject",
            "class": CLASSES[expect.errno],
            "rule": expect.rule,
            "offset": expect.offset,
            "section": expect.section,
        }
    return plain if vector.verdict != "either" else {"verdict": "either", "savevm": plain}


class Readers:
    """Both implementations, each in its process."""

    def __init__(self, directory: Path) -> None:
        self._stream: Final = directory / "stream.bin"
        self._explain: Final = directory / "transcript.json"
        self._adapters: Final = {name: Adapter(command_of(name), seconds=60) for name in OURS}

    def read(self, name: str, data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        """What one of them says, and its whole transcript."""
        self._stream.write_bytes(data)
        message = {"id": name, "role": "reader", "stream": str(self._stream)}
        reply = self._adapters[name].case(message | {"explain": str(self._explain)})
        if reply["outcome"] not in ("accept", "reject"):
            raise DisagreementError(f"{name}: {reply['why']}")
        return reply, json.loads(self._explain.read_text("utf-8"))

    def close(self) -> None:
        """End both."""
        for adapter in self._adapters.values():
            adapter.bye()


def make(vector: Vector, readers: Readers) -> Recorded:
    """What both implementations make of an accepted vector.

    Raises:
        DisagreementError: they differ, or what they say is not what the vector declares.
    """
    assert isinstance(vector.expect, Accepted)
    (one, (reply, transcript)), (other, (_, second)) = (
        (name, readers.read(name, vector.data)) for name in OURS
    )
    if found := difference(transcript["error"], second["error"], "error"):
        raise DisagreementError(f"{vector.id}: {one} and {other}: {found}")
    if reply["outcome"] != "accept":
        raise DisagreementError(f"{vector.id}: {one} and {other} reject it: {reply}")
    if found := difference(transcript, second):
        raise DisagreementError(f"{vector.id}: {one} and {other}: {found}")
    made: Recorded = {key: reply[key] for key in _MADE if len(reply[key]) <= RECORDS}
    made["requires"] = features(transcript)
    if vector.machine or vector.loader or is_of_spike(transcript):
        made["machine"] = vector.machine or SPIKE
    declared = _expect(vector, made)
    declared = declared.get("savevm", declared)
    for key in ("dialect", "findings"):
        if found := difference(declared[key], reply[key], f"declared {key}"):
            raise DisagreementError(f"{vector.id}: {found}")
    if reply["rebuilt"] != hashlib.sha256(vector.data).hexdigest():
        raise DisagreementError(f"{vector.id}: read and written again it is not the same")
    return made


def is_of_spike(transcript: dict[str, Any]) -> bool:
    """Whether a QEMU with that board has all that a stream has."""
    records = transcript["records"]
    machines = [r["machine"] for r in records if r["record"] == "configuration"]
    blocks = {block["idstr"]: block["used_length"] for block in transcript["ram"]}
    return (
        machines == ["spike"]
        and blocks.items() <= _BLOCKS.items()
        and all(_DEVICES.get(r["idstr"]) == r["version_id"] for r in records if "idstr" in r)
    )


def _recorded(vector: Vector, directory: Path) -> Recorded | None:
    """What is on disk already for the same bytes and declaration."""
    try:
        expect = json.loads((directory / "expect.json").read_text("utf-8"))
        case = tomllib.loads((directory / "case.toml").read_text("utf-8"))
        stream = (directory / "stream.bin").read_bytes()
    except (OSError, ValueError):
        return None
    expect = expect.get("savevm", expect)
    made = {key: expect[key] for key in _MADE if key in expect}
    made |= {key: case[key] for key in ("requires", "machine") if key in case}
    if case.get("machine") != (vector.machine or case.get("machine")):
        return None
    if stream != vector.data or not {"transcript", "requires"} <= made.keys():
        return None
    declared = _expect(vector, made)
    return made if declared.get("savevm", declared) == expect else None


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
    made: dict[str, Recorded] = {}
    with tempfile.TemporaryDirectory(prefix="savevm-") as place:
        readers = Readers(Path(place))
        try:
            for vector in wanted.values():
                if isinstance(vector.expect, Accepted):
                    known = None if afresh else _recorded(vector, root / vector.id)
                    try:
                        made[vector.id] = known or make(vector, readers)
                    except DisagreementError as error:
                        problem(str(error))
                        count += 1
        finally:
            readers.close()
    for vector in wanted.values():
        # What is made of a vector is made of those that are it with one fault.
        origin = vector
        while origin.base is not None and isinstance(origin.expect, Rejected):
            origin = origin.base
        if origin.id not in wanted or isinstance(origin.expect, Rejected):
            made[origin.id] = {"requires": list(origin.requires)}
        if origin.id in made:
            files = render(vector, made[origin.id])
            count += _write_files(root / vector.id, files, check, problem)
    given = {write.id: write for write in writes()}
    for id, write in given.items():
        count += _write_files(root / id, render_write(write), check, problem)
    return count + _stale(root, {*wanted, *given}, check, problem)


def _write_files(
    directory: Path, files: dict[str, bytes], check: bool, problem: Callable[[str], None]
) -> int:
    count = 0
    for name, content in files.items():
        path = directory / name
        if path.is_file() and path.read_bytes() == content:
            continue
        count += 1
        if check:
            problem(f"{'/'.join(path.parts[-4:])} differs")
        else:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return count


def _stale(root: Path, wanted: set[str], check: bool, problem: Callable[[str], None]) -> int:
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
