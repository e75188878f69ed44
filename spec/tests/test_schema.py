"""Bodies by a schema: conditions, numbers in other fields, and which of several it is."""

import io
from struct import pack
from typing import Any

import pytest

from savevm_spec import schema
from savevm_spec.devices import schemas
from savevm_spec.errors import GrammarError
from savevm_spec.reading import Reading
from savevm_spec.stream import Stream, build, parse, transcript

V1 = b"QEVM" + pack(">I", 1)
V2 = b"QEVM" + pack(">I", 2)
V3 = b"QEVM" + pack(">I", 3)
CONFIGURED = V3 + b"\x07" + pack(">I", 1) + b"a"


def layout(*fields: dict[str, Any], name: str = "dev", **more: Any) -> dict[str, Any]:
    return {"vmsd_name": name, "version": 1, "fields": list(fields), **more}


def field(name: str, type: str = "uint8", size: int | str = 1, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": type, "size": size, **more}


def only(described: dict[str, Any], condition: list[Any]) -> dict[str, Any]:
    return {**described, "if": condition}


def struct(name: str, *fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "struct", "struct": layout(*fields, name=name), **more}


def read(described: dict[str, Any], wire: bytes, left: int = 0) -> dict[str, Any]:
    body = schema.body(described)
    stream = io.BytesIO(wire)
    value = body.grammar.parse_stream(stream)
    assert stream.tell() == len(wire) - left
    assert body.grammar.build(value) == wire[: len(wire) - left]
    return body.transcript(value)


def fields(described: dict[str, Any], wire: str) -> Any:
    return read(described, bytes.fromhex(wire))["fields"]


@pytest.mark.parametrize(
    ("condition", "operand", "there"),
    [
        ("==", 3, "3"),
        ("!=", 3, "0127"),
        ("<", 3, "012"),
        ("<=", 3, "0123"),
        (">", 1, "237"),
        (">=", 1, "1237"),
        ("&", 5, "137"),
    ],
)
def test_a_field_is_there_if_its_condition_holds(condition: str, operand: int, there: str) -> None:
    described = layout(field("a"), only(field("b"), ["a", condition, operand]))
    for a in (0, 1, 2, 3, 7):
        if str(a) in there:
            assert fields(described, f"{a:02x}ff") == [["a", a], ["b", 255]]
        else:
            assert fields(described, f"{a:02x}") == [["a", a]]


def test_a_bool_is_a_condition() -> None:
    described = layout(field("a", "bool"), only(field("b"), ["a", "!=", 0]))
    assert fields(described, "00") == [["a", False]]
    assert fields(described, "0107") == [["a", True], ["b", 7]]
    assert fields(described, "0207") == [["a", 2], ["b", 7]]


def test_numbers_of_elements_and_bytes() -> None:
    described = layout(
        field("n", "int8"),
        field("numbers", "uint16", 2, array_len="n"),
        field("bytes", "buffer", "n"),
        struct("parts", field("x"), array_len="n"),
        field("fixed", array_len=2),
    )
    assert fields(described, "02 0001 0002 aabb 07 08 0304") == [
        ["n", 2],
        ["numbers", [1, 2]],
        ["bytes", "aabb"],
        [
            "parts",
            [{"fields": [["x", 7]], "subsections": []}, {"fields": [["x", 8]], "subsections": []}],
        ],
        ["fixed", [3, 4]],
    ]
    for none in ("00", "ff"):
        said = fields(described, none + "0304")
        assert said[1:4] == [["numbers", []], ["bytes", ""], ["parts", []]]


def test_a_name_is_that_of_the_latest_field_of_the_innermost_structure() -> None:
    inner = only(field("x"), ["a", "==", 1])
    described = layout(
        field("a"),
        struct("none", inner),
        field("a"),
        struct("outer", inner, field("a"), struct("innermost", inner)),
        struct("after", inner),
    )
    assert fields(described, "00 01 f1 00 f2") == [
        ["a", 0],
        ["none", {"fields": [], "subsections": []}],
        ["a", 1],
        [
            "outer",
            {
                "fields": [
                    ["x", 0xF1],
                    ["a", 0],
                    ["innermost", {"fields": [], "subsections": []}],
                ],
                "subsections": [],
            },
        ],
        ["after", {"fields": [["x", 0xF2]], "subsections": []}],
    ]


PART = {**layout(field("x", array_len="a"), name="dev/p"), "version": 3}
OTHER = layout(field("y"), name="dev/q")


def test_subsections_may_be_absent() -> None:
    described = layout(field("a"), subsections=[PART, OTHER])
    p, q = b"\5\5dev/p" + pack(">I", 3), b"\5\5dev/q" + pack(">I", 1)
    assert read(described, b"\1")["subsections"] == []
    said = read(described, b"\2" + p + b"\7\x08" + q + b"\x09")
    assert said == {
        "fields": [["a", 2]],
        "subsections": [
            {"name": "dev/p", "version": 3, "fields": [["x", [7, 8]]], "subsections": []},
            {"name": "dev/q", "version": 1, "fields": [["y", 9]], "subsections": []},
        ],
    }
    assert len(read(described, b"\0" + q + b"\x09")["subsections"]) == 1
    # In another order, of another name, or cut in its name it is none of the device's.
    for behind in (q + b"\x09" + p, b"\5\4dev/", b"\5\5dev/r\0\0\0\1", p[:-5]):
        left = 11 if behind.startswith(q) else len(behind)
        read(described, b"\0" + behind, left=left)


def test_a_subsection_inside_a_structure() -> None:
    nested = {"name": "s", "type": "struct", "struct": layout(subsections=[PART], name="s")}
    said = read(layout(field("a"), nested), b"\1\5\5dev/p" + pack(">I", 3) + b"\7")
    assert said["fields"][1][1]["subsections"][0]["fields"] == [["x", [7]]]


def test_the_version_of_a_subsection() -> None:
    body = schema.body(layout(subsections=[PART]))
    with pytest.raises(GrammarError) as caught:
        body.grammar.parse(b"\5\5dev/p" + pack(">I", 4))
    assert (caught.value.rule, caught.value.offset) == ("vmstate.subsection.version", 7)


@pytest.mark.parametrize(
    ("described", "wire"),
    [
        (layout(field("n", "uint32", 4), field("b", "buffer", "n")), "ffffffff 00"),
        (layout(field("n", "uint64", 8), field("b", array_len="n")), "ff" * 8),
        (layout(field("n", "uint32", 4), struct("s", field("x"), array_len="n")), "ffffffff 00"),
    ],
)
def test_more_than_the_input_has_is_only_truncated(described: dict[str, Any], wire: str) -> None:
    with pytest.raises(GrammarError, match=r"vmstate\.truncated"):
        schema.body(described).grammar.parse(bytes.fromhex(wire))


def test_the_fields_of_a_stream_are_bounded() -> None:
    nothing = only(field("x"), ["n", "==", 0])
    described = layout(field("n", "uint32", 4), struct("s", *[nothing] * 4096, array_len="n"))
    with pytest.raises(GrammarError, match=r"limit\.vmstate-fields"):
        schema.body(described).grammar.parse(b"\xff" * 4)


def section(idstr: bytes, version: int, body: bytes, id: int = 1) -> bytes:
    return b"\4" + pack(">IB", id, len(idstr)) + idstr + pack(">II", 0, version) + body


def record(idstr: bytes, version: int, body: bytes) -> bytes:
    return bytes([len(idstr)]) + idstr + pack(">III", 0, version, len(body)) + body


def bodies(data: bytes) -> list[Any]:
    stream = parse(data)
    assert stream.error is None, stream.error
    assert build(stream) == data
    return [r["body"] for r in transcript(stream)["records"] if "body" in r]


def error(stream: Stream) -> tuple[str, int]:
    assert stream.error is not None
    return stream.error.rule, stream.error.offset


TIMER = pack(">qqq", 5, -1, 7)
TIMER_TOLD = {
    "kind": "vmstate",
    "length": 24,
    "fields": [["cpu_ticks_offset", 5], ["ticks_per_sec", -1], ["cpu_clock_offset", 7]],
    "subsections": [],
}


def test_a_section_that_nothing_describes() -> None:
    for idstr in (b"timer", b"0000:00:01.0/timer"):
        data = V3 + section(idstr, 2, TIMER) + b"\0"
        assert bodies(data) == [{**TIMER_TOLD, "offset": 22 + len(idstr)}]
        said = transcript(parse(data))
        assert (said["footers"], said["findings"]) == (False, [])


def test_where_there_may_be_footers_no_schema_counts() -> None:
    footed = CONFIGURED + section(b"timer", 2, TIMER) + b"\x7e" + pack(">I", 1) + b"\0"
    assert bodies(footed)[0]["kind"] == "opaque"
    assert bodies(CONFIGURED + section(b"timer", 2, TIMER) + b"\0")[0]["kind"] == "undelimited"


def test_records() -> None:
    for header in (V1, V2 + pack(">Q", 18 + 24)):
        [body] = bodies(header + record(b"timer", 2, TIMER))
        assert body == {**TIMER_TOLD, "offset": len(header) + 18}
    for other in (TIMER[1:], TIMER + b"\0"):
        kinds = [b["kind"] for b in bodies(V1 + record(b"timer", 2, other) * 2)]
        assert kinds == ["buffer", "buffer"]


def length(described: dict[str, Any]) -> int:
    """How many bytes of a body of zeros a schema reads."""
    end = schema.end(schema.body(described), io.BytesIO(bytes(1 << 16)), Reading())
    assert end is not None
    return end


CPU = [length(described) for described in schemas("cpu", 7)]


@pytest.mark.parametrize("length", CPU)
@pytest.mark.parametrize("behind", [b"\0", section(b"timer", 2, TIMER) + b"\0"])
def test_the_schema_behind_which_a_record_begins(length: int, behind: bytes) -> None:
    data = V3 + section(b"cpu", 7, bytes(length)) + behind
    assert len(set(CPU)) > 1
    assert bodies(data)[0]["length"] == length
    assert bodies(V1 + record(b"cpu", 7, bytes(length)))[0]["length"] == length


@pytest.mark.parametrize("kind", [2, 3])
def test_a_part_of_an_earlier_section_is_a_record_too(kind: int) -> None:
    live = V3 + b"\1" + pack(">IB", 9, 3) + b"ram" + pack(">IIQ", 0, 4, 16)
    part = bytes([kind]) + pack(">IQ", 9, 16) + b"\0"
    for length in CPU:
        assert bodies(live + section(b"cpu", 7, bytes(length)) + part)[1]["length"] == length


def test_without_a_record_behind_any_schema_the_body_is_undelimited() -> None:
    head = V3 + section(b"cpu", 7, b"")
    data = head + bytes(CPU[0]) + b"\xff" * 5000 + b"\0"
    stream = parse(data)
    assert stream.error is None
    assert [(f.rule, f.offset) for f in stream.findings] == [
        ("section.body.undescribed", len(head)),
        ("stream.undelimited", len(head)),
    ]
    assert error(parse(data[:-1])) == ("stream.eof-mark", len(data) - 2)


def test_a_stream_that_ends_within_a_schema_is_truncated() -> None:
    head = V3 + section(b"cpu", 7, b"")
    short = head + bytes(min(CPU) - 1)
    assert error(parse(short)) == ("vmstate.truncated", len(short))
    ends = head + bytes(min(CPU))
    assert error(parse(ends)) == ("stream.truncated", len(ends))
