"""Versions that nobody here knows are refused by name and place, and nothing of them is taken over."""

import re
from collections.abc import Sequence
from typing import Any

from boards import PAGE, Board, Log
from hypothesis import assume, given
from hypothesis import strategies as st
from verdicts import agreed, good, load_error

from savevm.channel import Channel
from savevm.errors import StreamError
from savevm.ram import RamBlock
from savevm.savevm import Device, Format, Ram, Registry, save
from savevm.transport.memory import MemoryInput, MemoryOutput
from savevm_fuzz.seeds import Seed
from savevm_spec.fields import Field

U32 = (1 << 32) - 1
# Near each other, so that all of older, between and newer come; or anywhere.
VERSIONS = st.one_of(st.integers(0, 9), st.integers(0, U32))
DIALECTS = st.sampled_from(("v3-configuration", "v3-vmdesc", "v3-ram4", "v3-ram3", "v2"))


class Versioned(Device):
    """A device with a field more in each of its first versions, and not all between its limits.

    ``subsections``: as of a layout, without fields.
    """

    def __init__(
        self,
        idstr: str,
        newest: int,
        oldest: int,
        gaps: frozenset[int] = frozenset(),
        subsections: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(idstr, version_id=newest, minimum_version_id=oldest)
        self.gaps = gaps
        self.subsections = list(subsections)
        self.state: Any = "as before"

    def loads(self, version_id: int) -> bool:
        return version_id not in self.gaps

    def layout(self, version_id: int) -> dict[str, Any]:
        fields = [
            {"name": f"n{i}", "type": "uint8", "size": 1} for i in range(min(version_id, 9) + 1)
        ]
        layout = {"vmsd_name": self.idstr, "version": version_id, "fields": fields}
        return layout | ({"subsections": self.subsections} if self.subsections else {})

    def save(self) -> Any:
        fields = [[field["name"], 7] for field in self.layout(self.version_id)["fields"]]
        return {"fields": fields, "subsections": [saved_of(sub) for sub in self.subsections]}

    def load(self, state: Any, version_id: int) -> None:
        self.state = state


def saved_of(layout: dict[str, Any]) -> dict[str, Any]:
    subsections = [saved_of(sub) for sub in layout.get("subsections", ())]
    name, version = layout["vmsd_name"], layout["version"]
    return {"name": name, "version": version, "fields": [], "subsections": subsections}


def registry(*devices: Device) -> Registry:
    made = Registry()
    for savable in (Ram([RamBlock("pc.ram", PAGE)]), *devices):
        made.register(savable)
    return made


def written(dialect: str, *devices: Device) -> bytes:
    output = MemoryOutput()
    save(registry(*devices), Channel(output), Format(dialect))
    return bytes(output.data)


def refused(data: bytes, *devices: Device) -> StreamError | None:
    """Why it does not load; then no device has changed."""
    error = load_error(registry(*devices), Channel(MemoryInput(data)))
    if error is None:
        return None
    assert isinstance(error.cause, StreamError)
    assert all(d.state == "as before" for d in devices if isinstance(d, Versioned))
    return error.cause


def version_at(data: bytes, idstr: str) -> int:
    """The offset of a section's version: behind its name and instance, whatever the dialect."""
    name = bytes((len(idstr),)) + idstr.encode()
    assert data.count(name) == 1
    return data.index(name) + len(name) + 4


def patched(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + value.to_bytes(4) + data[at + 4 :]


@st.composite
def supported(draw: st.DrawFn) -> tuple[int, int, frozenset[int]]:
    """Newest, oldest and what between them is not loaded."""
    oldest, newest = sorted((draw(VERSIONS), draw(VERSIONS)))
    return newest, oldest, draw(st.frozensets(st.integers(oldest, newest), max_size=2))


@given(DIALECTS, st.lists(st.tuples(VERSIONS, supported()), min_size=1, max_size=4))
def test_sections(dialect: str, devices: list[tuple[int, tuple[int, int, frozenset[int]]]]) -> None:
    data = written(dialect, *(Versioned(f"d{i}", w, w) for i, (w, _) in enumerate(devices)))
    targets = [Versioned(f"d{i}", *supports) for i, (_, supports) in enumerate(devices)]
    error = refused(data, *targets)
    for target, (version, (newest, oldest, gaps)) in zip(targets, devices, strict=True):
        if version > newest:
            rule = "section.version.newer-than-supported"
        elif version < oldest or version in gaps:
            rule = "section.version.older-than-minimum"
        else:
            continue
        # The first in the stream is that which is told.
        assert error is not None
        assert (error.rule, error.section) == (rule, target.idstr)
        assert error.offset == version_at(data, target.idstr)
        return
    assert error is None
    assert [len(target.state["fields"]) for target in targets] == [
        min(version, 9) + 1 for version, _ in devices
    ]


@st.composite
def subsections(draw: st.DrawFn, depth: int = 2) -> list[dict[str, Any]]:
    """Layouts in the layouts of a device."""
    names = draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3 if depth else 0))
    return [
        {
            "vmsd_name": f"d/{name}{depth}",
            "version": draw(VERSIONS),
            "fields": [],
            "subsections": draw(subsections(depth - 1)),
        }
        for name in names
    ]


def every(layouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layouts and those in them, in stream order."""
    return [each for layout in layouts for each in (layout, *every(layout["subsections"]))]


def with_version(layouts: list[dict[str, Any]], which: int, version: int) -> list[dict[str, Any]]:
    """A copy in which one of ``every`` has another version."""

    def copy(layout: dict[str, Any]) -> dict[str, Any]:
        own = version if layout is chosen else layout["version"]
        return layout | {"version": own, "subsections": list(map(copy, layout["subsections"]))}

    chosen = every(layouts)[which]
    return list(map(copy, layouts))


@given(DIALECTS, subsections(), st.data())
def test_subsections(dialect: str, layouts: list[dict[str, Any]], draw: st.DataObject) -> None:
    data = written(dialect, Versioned("d", 1, 1, subsections=layouts))
    same = Versioned("d", 1, 1, subsections=layouts)
    assert refused(data, same) is None
    assert same.state == same.save()
    assume(layouts)
    which = draw.draw(st.integers(0, len(every(layouts)) - 1))
    own = every(layouts)[which]["version"]
    # None of its bits may be left out.
    flipped = st.integers(0, 31).map(lambda bit: own ^ 1 << bit)
    version = draw.draw(flipped | VERSIONS.filter(lambda n: n != own))
    other = Versioned("d", 1, 1, subsections=with_version(layouts, which, version))
    error = refused(data, other)
    assert error is not None
    assert (error.rule, error.section) == ("vmstate.subsection.version", "d")
    # Mark, length and name come before it.
    name = every(layouts)[which]["vmsd_name"].encode()
    head = b"\x05" + bytes((len(name),)) + name
    assert data[: error.offset].endswith(head)


@given(DIALECTS, VERSIONS)
def test_ram(dialect: str, version: int) -> None:
    data = written(dialect)
    at = version_at(data, "ram")
    error = refused(patched(data, at, version))
    if not 1 <= version <= 4:
        direction = "newer-than-supported" if version else "older-than-minimum"
        assert error is not None
        assert (error.rule, error.offset) == (f"section.version.{direction}", at)
    elif version == int.from_bytes(data[at : at + 4]):
        assert error is None


@given(VERSIONS)
def test_live_sections(version: int) -> None:
    output = MemoryOutput()
    save(Board(Log("log")).registry, Channel(output), Format())
    data = bytes(output.data)
    at = version_at(data, "log")
    board = Board(Log("log"))
    channel = Channel(MemoryInput(patched(data, at, version)))
    error = load_error(board.registry, channel, board)
    if error is None:
        assert version == 1
        return
    assert isinstance(error.cause, StreamError)
    direction = "newer-than-supported" if version else "older-than-minimum"
    expected = f"section.version.{direction}", at, "log"
    assert (error.cause.rule, error.cause.offset, error.cause.section) == expected
    # Its START comes behind that of RAM, of which nothing was placed yet.
    assert board.running == (error.applied == [])


@given(VERSIONS, st.sampled_from([seed for seed, _ in good() if len(seed.data) <= 4096]))
def test_streams(version: int, seed: Seed) -> None:
    data = seed.data[:4] + version.to_bytes(4) + seed.data[8:]
    told = agreed(data)
    if version not in (1, 2, 3):
        assert (told["outcome"], told["rule"], told["offset"]) == ("reject", "header.version", 4)
    if version not in (2, 3):
        error = refused(data)
        assert error is not None
        assert (error.rule, error.offset) == ("header.version", 4)


def of(path: str) -> list[tuple[Seed, Field]]:
    return [
        (seed, field)
        for seed, _ in good()
        if len(seed.data) <= 1 << 13
        for field in seed.fields
        if field.path.endswith(path)
    ]


@given(VERSIONS, st.sampled_from(of("subsections.version")))
def test_subsections_of_the_configuration(version: int, place: tuple[Seed, Field]) -> None:
    seed, field = place
    told = agreed(patched(seed.data, field.offset, version))
    if version != 1:
        expected = "reject", "configuration.subsection.version", field.offset, None
        assert tuple(told[k] for k in ("outcome", "rule", "offset", "section")) == expected


DESCRIBED = [
    (seed, field)
    for seed, field in of("content.head.version_id")
    if re.search(
        rb'"name": "%s", "instance_id": \d+, "vmsd_name"' % re.escape(str(field.section).encode()),
        seed.data,
    )
]


@given(VERSIONS, st.sampled_from(DESCRIBED))
def test_of_what_is_described(version: int, place: tuple[Seed, Field]) -> None:
    """Of a stream that no machine loads the description says the versions."""
    seed, field = place
    told = agreed(patched(seed.data, field.offset, version))
    if version == int.from_bytes(seed.data[field.offset : field.end]):
        assert told["outcome"] == "accept"
        return
    expected = "reject", "section.version.differs-from-description", field.offset, field.section
    assert tuple(told[k] for k in ("outcome", "rule", "offset", "section")) == expected
