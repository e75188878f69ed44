"""Bodies by their description: values of every type, structure, and descriptions gone wrong."""

import json
from struct import pack
from typing import Any

import pytest

from savevm_spec.stream import Stream, build, parse, transcript
from savevm_spec.vmdesc import discover


def vmdesc(text: str) -> bytes:
    return b"\x06" + pack(">I", len(text)) + text.encode()


def stream_of(body: bytes, device: str, idstr: bytes = b"dev", sections: int = 1) -> bytes:
    section = b"\x04" + pack(">IB", 5, len(idstr)) + idstr + pack(">II", 0, 1) + body
    footed = section + b"\x7e" + pack(">I", 5)
    text = f'{{"devices": [{device}]}}'
    return b"QEVM" + pack(">I", 3) + footed * sections + b"\x00" + vmdesc(text)


def device(*fields: str, more: str = "", name: str = "dev", version: str = "1") -> str:
    head = f'"name": "{name}", "instance_id": 0, "vmsd_name": "{name}", "version": {version}'
    return f'{{{head}, "fields": [{", ".join(fields)}]{more}}}'


def read(body: bytes, described: str, idstr: bytes = b"dev") -> dict[str, Any]:
    data = stream_of(body, described, idstr)
    stream = parse(data)
    assert stream.error is None, stream.error
    assert build(stream) == data
    decoded: dict[str, Any] = transcript(stream)["records"][1]["body"]
    return decoded


def field(type: str, size: int, more: str = "", name: str = "f") -> str:
    return f'{{"name": "{name}", "type": "{type}", "size": {size}{more}}}'


def error(stream: Stream) -> tuple[str, int]:
    assert stream.error is not None
    return stream.error.rule, stream.error.offset


BODY = 25
INNER = '"vmsd_name": "in", "version": 1, "fields": [' + field("uint8", 1, name="x") + "]"
X7 = {"fields": [["x", 7]], "subsections": []}
X8 = {"fields": [["x", 8]], "subsections": []}


@pytest.mark.parametrize(
    ("type", "wire", "value"),
    [
        ("bool", "00", False),
        ("bool", "01", True),
        ("bool", "ff", 255),
        ("int8", "ff", -1),
        ("int16", "fffe", -2),
        ("int32", "80000000", -(1 << 31)),
        ("int64", "ffffffffffffffff", -1),
        ("uint8", "ff", 255),
        ("uint16", "fffe", 65534),
        ("uint32", "80000000", 1 << 31),
        ("uint64", "ffffffffffffffff", (1 << 64) - 1),
        ("uint8 equal", "80", 128),
        ("uint16 equal", "8000", 32768),
        ("uint32 equal", "80000000", 1 << 31),
        ("int32 equal", "ffffffff", -1),
        ("int32 le", "ffffffff", -1),
        ("int64 equal", "ffffffffffffffff", (1 << 64) - 1),
        ("timer", "ffffffffffffffff", -1),
        ("CPU_Double_U", "8000000000000000", 1 << 63),
        ("nullptr", "30", None),
        ("ptr-marker", "31", True),
        ("buffer", "0001ff", "0001ff"),
        ("unused_buffer", "", ""),
        ("uint32", "000001", "000001"),
        ("gtree", "0000000000", "0000000000"),
    ],
)
def test_values(type: str, wire: str, value: Any) -> None:
    body = bytes.fromhex(wire)
    single = read(body, device(field(type, len(body))))
    assert single["fields"] == [["f", value]]
    array = read(body * 3, device(field(type, len(body), ', "array_len": 3')))
    assert array["fields"] == [["f", [value] * 3 if body else []]]


def test_an_array_of_one_is_a_list() -> None:
    assert read(b"\7", device(field("uint8", 1, ', "array_len": 1')))["fields"] == [["f", [7]]]


def test_names_may_repeat_and_be_anything() -> None:
    fields = [field("uint8", 1, name=name) for name in ("a", "a", "_", "_params")]
    assert read(b"\1\2\3\4", device(*fields))["fields"] == [
        ["a", 1],
        ["a", 2],
        ["_", 3],
        ["_params", 4],
    ]


@pytest.mark.parametrize("form", [f', "struct": {{{INNER}}}', f", {INNER}"])
def test_structs(form: str) -> None:
    type = "struct" if "struct" in form else "tmp"
    assert read(b"\7", device(field(type, 1, form)))["fields"] == [["f", X7]]
    array = read(b"\7\x08", device(field(type, 1, form + ', "array_len": 2')))
    assert array["fields"] == [["f", [X7, X8]]]


def test_a_struct_of_nothing() -> None:
    struct = ', "struct": {"vmsd_name": "in", "version": 1, "fields": []}'
    nothing: dict[str, Any] = {"fields": [], "subsections": []}
    assert read(b"", device(field("struct", 0, struct)))["fields"] == [["f", nothing]]


def test_lists_repeat_the_keys_of_their_elements() -> None:
    assert read(b"\0", device(field("qlist", 1)))["fields"] == [["f", []]]
    two = field("qtailq", 5, f", {INNER}, {INNER}")
    assert read(b"\1\7\1\x08\0", device(two))["fields"] == [["f", [X7, X8]]]


def test_subsections_nest() -> None:
    nested = '"vmsd_name": "dev/s/t", "version": 3, "fields": []'
    inner = field("uint8", 1, name="x")
    more = (
        f', "subsections": [{{"vmsd_name": "dev/s", "version": 2, "fields": [{inner}],'
        f' "subsections": [{{{nested}}}]}}]'
    )
    body = b"\7\x05\x05dev/s\0\0\0\2\x08\x05\x07dev/s/t\0\0\0\3"
    assert read(body, device(field("uint8", 1), more=more)) == {
        "kind": "vmstate",
        "offset": BODY,
        "length": len(body),
        "fields": [["f", 7]],
        "subsections": [
            {
                "name": "dev/s",
                "version": 2,
                "fields": [["x", 8]],
                "subsections": [{"name": "dev/s/t", "version": 3, "fields": [], "subsections": []}],
            }
        ],
    }


def test_an_array_of_pointers_that_the_description_omits() -> None:
    omitted = field("struct", 1, ', "struct": {}, "array_len": 3', name="css")
    image = bytes([1, 32, 0]) + bytes(765)
    body = b"0" + image + b"0"
    decoded = read(body, device(omitted, name="s390_css"), b"s390_css")
    first, present, last = decoded["fields"][0][1]
    assert first is last is None
    assert len(present["fields"][0][1]) == 256
    assert present["fields"][0][1][0]["fields"] == [["in_use", 1], ["type", 32], ["is_virtual", 0]]
    unknown = stream_of(b"\7" + body, device(field("uint8", 1), omitted))
    assert error(parse(unknown)) == ("vmdesc.layout", BODY)


def test_a_device_that_is_only_a_size() -> None:
    old = '{"name": "dev", "instance_id": 0, "size": 3, "fields": []}'
    assert read(b"abc", old)["kind"] == "buffer"
    short = stream_of(b"abc", old.replace("3", "30000"))
    assert error(parse(short)) == ("vmstate.truncated", len(short))


def test_the_nth_section_has_the_nth_entry_or_the_last() -> None:
    entries = [device(field("uint8", 1, name=name)) for name in "ab"]
    stream = parse(stream_of(b"\7", ", ".join(entries), sections=3))
    records = transcript(stream)["records"][1:4]
    assert [record["body"]["fields"] for record in records] == [[["a", 7]], [["b", 7]], [["b", 7]]]


@pytest.mark.parametrize(
    "broken",
    [
        "7",
        "{}",
        field("uint8", -1),
        field("uint8", 1, ', "array_len": 0'),
        field("uint8", 1).replace("1", "true"),
        field("uint8", 1).replace('"f"', "1"),
        field("struct", 1),
        field("struct", 1, ', "struct": {"fields": []}'),
        field("struct", 1, f', "struct": {{{INNER}, "subsections": 1}}'),
        field("tmp", 1),
        field("qlist", 3, ', "vmsd_name": "e", "fields": []'),
    ],
)
def test_a_malformed_field_is_an_error_only_when_reached(broken: str) -> None:
    assert error(parse(stream_of(b"\7", device(broken)))) == ("vmdesc.layout", BODY)
    wide = device(field("buffer", 99999), broken)
    data = stream_of(b"\7", wide)
    assert error(parse(data)) == ("vmstate.truncated", len(data))


@pytest.mark.parametrize(
    ("described", "offset"),
    [
        (field("struct", 2, f', "struct": {{{INNER}}}, "array_len": 2'), BODY),
        (field("tmp", 0, f", {INNER}"), BODY),
        (field("qlist", 4, f", {INNER}"), BODY),
        (field("uint8", 1) + ", " + field("struct", 2, f', "struct": {{{INNER}}}'), BODY + 1),
    ],
)
def test_a_size_that_is_not_the_sum(described: str, offset: int) -> None:
    data = stream_of(b"\1\1\0\0\0", device(described))
    assert error(parse(data)) == ("vmdesc.field.size", offset)


@pytest.mark.parametrize("count", [1 << 40, 10**400])
def test_a_huge_array_is_only_truncated(count: int) -> None:
    data = stream_of(b"\7", device(field("uint8", 1, f', "array_len": {count}')))
    assert error(parse(data)) == ("vmstate.truncated", len(data))


@pytest.mark.parametrize("depth", [2, 39])
def test_nesting_up_to_the_limit(depth: int) -> None:
    described, value = field("uint8", 1, name="x"), ["x", 7]
    for _ in range(depth):
        inner = f', "struct": {{"vmsd_name": "n", "version": 1, "fields": [{described}]}}'
        described, value = (
            field("struct", 1, inner),
            ["f", {"fields": [value], "subsections": []}],
        )
    assert read(b"\7", device(described))["fields"] == [value]


def test_subsections_nest_up_to_the_limit() -> None:
    described = '{"vmsd_name": "s", "version": 1, "fields": []}'
    for _ in range(60):
        described = (
            f'{{"vmsd_name": "s", "version": 1, "fields": [], "subsections": [{described}]}}'
        )
    body = b"\x05\x01s\0\0\0\1" * 61
    decoded = read(body, device(more=f', "subsections": [{described}]'))
    assert decoded["length"] == len(body)


def found(data: bytes) -> int | None:
    description = discover(data)
    return None if description is None else description.count


def test_the_description_that_reaches_the_end_is_preferred() -> None:
    none, one, two = (vmdesc(json.dumps({"devices": list(range(n))})) for n in range(3))
    assert found(b"\0" + one) == 1
    assert found(one) is None
    assert found(b"\0" + one + b"\0" + none) == 0
    assert found(b"\0" + one + b"\0" + two + b"\0") == 2
    assert found(b"\0" + one + b"\0" + two[:-1]) == 1
    assert found(b"\0" + vmdesc("[" * 200) + b"\0" + one + b"more") == 1


@pytest.mark.parametrize("text", ['{"devices": 1}', '{"devices": [}', '{"a": 1}', "{\xff}"])
def test_no_description(text: str) -> None:
    assert found(b"\0" + vmdesc(text)) is None
