"""A reader whose caller has a say in how sections are read."""

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from streams import EOF, EOS, HEADER, blocks, configuration, counted, footer, page, start, zero
from test_reader import read

from savevm.errors import stream_error
from savevm.stream.events import BodyEnd, Configuration, Device, Section
from savevm.stream.handlers import Handlers, LiveBody
from savevm.stream.reader import Reader
from savevm.transcript import rebuild

LAYOUT: dict[str, Any] = {
    "vmsd_name": "d",
    "version": 1,
    "fields": [{"name": "x", "type": "uint32", "size": 4}],
}
ENTRY = {"name": "d", "instance_id": 0, **LAYOUT}
V1 = b"QEVM" + struct.pack(">I", 1)


class Calls(Handlers):
    def __init__(self, answer: Callable[[Section], Any] = lambda section: None) -> None:
        self.answer = answer
        self.sections: list[tuple[int, str, int]] = []
        self.machine = ""

    def begin(self, section: Section) -> dict[str, Any] | LiveBody | None:
        self.sections.append((section.type, section.idstr, section.version_id))
        answer = self.answer(section)
        assert answer is None or isinstance(answer, (dict, LiveBody))
        return answer

    def configuration(self, event: Configuration) -> None:
        self.machine = event.machine
        if event.machine == "other":
            raise stream_error("configuration.machine.empty", 8, None, "another machine")


class Counted(LiveBody):
    """A length byte and as many bytes."""

    def __init__(self) -> None:
        self.data = b""

    def read(self, data: bytes, start: int, base: int, final: bool) -> int:
        assert type(data) is bytes
        if len(data) == start or len(data) < start + 1 + data[start]:
            self.need = 1 if len(data) == start else 1 + data[start]
            return start
        end = start + 1 + data[start]
        self.data = data[start + 1 : end]
        self.done = True
        return end


def record(idstr: str, body: bytes) -> bytes:
    return counted(idstr) + struct.pack(">III", 0, 1, len(body)) + body


def test_every_section_is_asked_for() -> None:
    ram = start(2, "ram", blocks(("r", 4096)) + zero(0, "r") + EOS)
    end = b"\3" + struct.pack(">I", 2) + EOS + footer(2)
    data = HEADER + configuration("m") + ram + end + start(3, "d", bytes(4), kind=4) + EOF
    handlers = Calls(lambda section: LAYOUT if section.idstr == "d" else None)
    _, reader = read(data, [1] * len(data), handlers=handlers)
    assert reader.error is None
    assert handlers.sections == [(1, "ram", 4), (3, "ram", 4), (4, "d", 4)]
    assert handlers.machine == "m"


@pytest.mark.parametrize("layout", [LAYOUT, ENTRY])
def test_nothing_is_waited_for_behind_the_body(layout: dict[str, Any]) -> None:
    reader = Reader(handlers=Calls(partial(given, layout)))
    data = HEADER + configuration() + start(3, "d", b"", end=b"", kind=4)
    assert not any(isinstance(e, Device) for e in reader.feed(data + b"\0\0\0"))
    # A subsection would begin behind the body of the schema; here the footer does.
    events = reader.feed(b"\x2a" if layout is ENTRY else b"\x2a\x7e")
    assert [e.state["fields"] for e in events if isinstance(e, Device)] == [[["x", 42]]]
    assert any(isinstance(e, BodyEnd) for e in events)


def test_a_body_of_its_own_format() -> None:
    bodies: list[Counted] = []

    def live(section: Section) -> LiveBody:
        bodies.append(Counted())
        return bodies[-1]

    data = HEADER + configuration() + start(3, "d", b"\5hello") + start(4, "e", b"\0") + EOF
    for sizes in (None, [1] * len(data)):
        _, reader = read(data, sizes, handlers=Calls(live))
        assert reader.error is None
    assert [body.data for body in bodies] == [b"hello", b""] * 2
    _, reader = read(data[: data.index(b"llo")], handlers=Calls(live))
    assert reader.error is not None
    assert reader.error.rule == "section.truncated"


@pytest.mark.parametrize(
    ("body", "rule", "findings"),
    [(b"\2hi", None, 0), (b"\2hi!", None, 1), (b"\3hi", "record.body.outside", 0)],
)
def test_bodies_end_within_their_records(body: bytes, rule: str | None, findings: int) -> None:
    data = V1 + record("x", body) + record("y", b"\0")
    for sizes in (None, [1] * len(data)):
        events, reader = read(data, sizes, handlers=Calls(lambda section: Counted()))
        assert (reader.error and reader.error.rule) == rule
        assert len([e for e in events if type(e).__name__ == "Finding"]) == findings


@pytest.mark.parametrize(
    ("size", "rule", "kinds"),
    [
        (3, "record.body.outside", []),
        (4, None, ["vmstate", "vmstate"]),
        (6, None, ["vmstate", "vmstate"]),
    ],
)
def test_layouts_end_within_their_records(size: int, rule: str | None, kinds: list[str]) -> None:
    data = V1 + record("x", bytes(size)) + record("y", bytes(4))
    for layout in (LAYOUT, ENTRY):
        for sizes in (None, [1] * len(data)):
            events, reader = read(data, sizes, handlers=Calls(partial(given, layout)))
            assert (reader.error and reader.error.rule) == rule
            if rule:
                assert reader.error is not None
                assert reader.error.offset == len(V1) + 14 + size
            assert [e.kind for e in events if isinstance(e, Device)] == kinds


def test_a_section_can_be_refused() -> None:
    def refuse(section: Section) -> None:
        raise stream_error("section.id.unknown", section.offset, section.idstr, "not wanted")

    for data in (
        HEADER + configuration() + start(3, "d", b"?") + EOF,
        V1 + record("d", b"?"),
    ):
        events, reader = read(data, handlers=Calls(refuse))
        assert reader.error is not None
        assert reader.error.rule == "section.id.unknown"
        assert isinstance(events[-1], Section)


def test_a_configuration_can_be_refused() -> None:
    _, reader = read(HEADER + configuration("other") + EOF, handlers=Calls())
    assert reader.error is not None
    assert reader.error.detail == "another machine"


def given(layout: dict[str, Any], section: Section) -> dict[str, Any]:
    return layout


def bits(number: int) -> bytes:
    return b"\5\x1econfiguration/target-page-bits" + struct.pack(">II", 1, number)


def test_a_known_page_size_is_not_inferred() -> None:
    """The first two pages are 8 KiB apart, which is not their size."""
    body = blocks(("r", 65536)) + page(0, bytes(4096), "r") + page(8192, bytes(4096)) + EOS
    data = HEADER + configuration() + start(2, "ram", body) + EOF
    _, reader = read(data, [1] * len(data), page_size=4096)
    assert (reader.error, reader.page_size) == (None, 4096)
    for given, rule in ((4096, None), (8192, "configuration.target-page-bits")):
        _, reader = read(HEADER + configuration("m", bits(12)) + EOF, page_size=given)
        assert (reader.error and reader.error.rule) == rule


def test_nothing_is_waited_for_when_there_is_no_description() -> None:
    """An undescribed body is there as soon as its footer is."""
    data = HEADER + configuration() + start(3, "d", b"?" * 40, kind=4) + EOF
    for options in ({"searched": True}, {"handlers": Calls()}):
        reader = Reader(**options)
        events = reader.feed(data)
        assert [e.length for e in events if isinstance(e, Device)] == [40]
        assert reader.error is None
    assert not any(isinstance(e, Device) for e in Reader().feed(data))
    assert rebuild(data) == data


def test_long_streams_without_a_description_are_no_matter_of_limits() -> None:
    """What follows an undescribed body may be longer than what may wait."""
    body = blocks(("r", 1 << 20)) + b"".join(
        page(i * 4096, bytes(4096), None if i else "r") for i in range(64)
    )
    data = HEADER + configuration() + start(3, "d", b"?" * 40, kind=4)
    data += start(4, "ram", body + EOS) + EOF
    for limit, searched, rule in ((1000, True, None), (1000, False, "limit.undescribed")):
        for sizes in (None, [100] * (len(data) // 100 + 1)):
            _, reader = read(data, sizes, undescribed_limit=limit, searched=searched)
            assert (reader.error and reader.error.rule) == rule
    # The body itself must not be longer.
    long = HEADER + configuration() + start(3, "d", b"?" * 1001, kind=4) + EOF + bytes(2000)
    for sizes in (None, [1] * len(long)):
        _, reader = read(long, sizes, undescribed_limit=1000, searched=True)
        assert reader.error is not None
        assert reader.error.rule == "limit.undescribed"
