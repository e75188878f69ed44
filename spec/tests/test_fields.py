"""Fields: they cover a stream without a gap, and each is what its name says."""

from pathlib import Path

import pytest
from construct import Int16ub, Struct

from savevm_spec import configuration, stream
from savevm_spec.constants import UUID
from savevm_spec.fields import fields

VECTORS = Path(__file__).parents[2] / "conformance" / "vectors"
STREAMS = sorted(VECTORS.glob("*/*/*/stream.bin"))


def vector(name: str) -> bytes:
    return (VECTORS / name / "stream.bin").read_bytes()


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: "/".join(path.parts[-4:-1]))
def test_every_stream(path: Path) -> None:
    data = path.read_bytes()
    found, parsed = fields(data)
    assert b"".join(data[field.offset : field.end] for field in found) == data
    assert all(field.length for field in found)
    # Watching changes nothing.
    assert stream.transcript(parsed) == stream.transcript(stream.parse(data))


def test_what_they_are() -> None:
    data = vector("ram/accept/live")
    found = {(f.offset, f.length): f for f in fields(data)[0]}
    assert found[0, 4].path == "header.magic"
    assert found[0, 4].rules == ("header.magic",)
    assert found[0, 4].truncated == "header.truncated"
    idstr = found[data.index(b"ram"), 3]
    assert (idstr.name, idstr.section) == ("idstr", None)
    assert found[idstr.end, 4].name == "instance_id"
    assert found[idstr.end, 4].section == "ram"
    last = found[len(data) - 1, 1]
    assert (last.path, last.section) == ("body.records.type", None)
    assert {"section.type", "vmdesc.misplaced"} <= set(last.rules)


def test_within_what_is_read_as_a_whole() -> None:
    data = vector("command/accept/discard-two-ranges")
    paths = [field.path for field in fields(data)[0]]
    assert paths.count("body.records.content.payload.others.start") == 1
    assert "body.records.content.payload.end_of_name" in paths


def test_behind_an_error() -> None:
    data = b"QEVM\0\0\0\3" + b"\x55" + b"rest"
    found, parsed = fields(data)
    assert parsed.error is not None
    assert [(f.offset, f.length, f.path) for f in found][-2:] == [
        (8, 1, "body.records.type"),
        (9, 4, ""),
    ]


def test_a_field_that_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Struct("low" / Int16ub, "high" / Int16ub)
    monkeypatch.setitem(configuration.BODIES, UUID, both)
    name = UUID.encode()
    head = b"QEVM\0\0\0\3\x07\0\0\0\0\x05" + bytes([len(name)]) + name + b"\0\0\0\1"
    found, parsed = fields(head + b"\0\1\0\2" + b"\0")
    assert parsed.error is None
    assert [f.name for f in found][-3:] == ["low", "high", "type"]
