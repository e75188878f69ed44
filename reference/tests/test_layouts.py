"""The layouts of the board ``spike``: what real QEMUs wrote, what they load, and what is refused."""

import lzma
import os
import re
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from qemus import Qemu

from savevm.channel import Channel
from savevm.machine.layouts import RELEASES, Incoming, Outgoing, registry
from savevm.machine.state import NO_RESERVATION, HartState, MachineState
from savevm.ram import RamBlock
from savevm.savable import CannotExpressError, Device, Format
from savevm.savevm import Loader, LoadError, save
from savevm.sink import Sink
from savevm.stream.events import Device as DeviceEvent
from savevm.stream.events import RamBlocks, Section
from savevm.stream.reader import Reader
from savevm.transport.memory import MemoryOutput
from savevm_spec.constants import SECTION_FULL
from savevm_spec.devices import layouts

SEEDS = Path(__file__).parents[2] / "conformance" / "vectors" / "seeds"
GIVEN = Path(os.environ.get("SAVEVM_STREAMS", "/nonexistent"))
# Of a guest that sleeps; spike/waits.S
SLEEPING = {
    release: Path(__file__).with_name("spike") / f"waits-{release}.bin.xz" for release in RELEASES
}
STREAMS = [
    *SLEEPING.values(),
    *(SEEDS / f"spike-uuid-{release}.bin.xz" for release in ("7.2", "10.0")),
    *sorted(GIVEN.glob("*_riscv64_spike*.bin*")),
]
CPU_VERSIONS = {"5.2": 1, "7.2": 5, "10.0": 10, "11.1": 12}
MISA = 2 << 62 | 0x14112D
ADUE = 1 << 61
RAM = 0x80000000


class Board:
    """What has a state and RAM."""

    def __init__(self, state: MachineState | None = None, ram: int = 1 << 20) -> None:
        self.ram = RamBlock("riscv.spike.ram", ram)
        self.mrom = RamBlock("riscv.spike.mrom", 0xF000)
        self._state = state or MachineState([HartState()])

    def state(self) -> MachineState:
        return deepcopy(self._state)

    def adopt(self, state: MachineState) -> None:
        self._state = deepcopy(state)


def written(outgoing: Outgoing) -> bytes:
    output = MemoryOutput()
    channel = Channel(output)
    save(outgoing, channel, Format(machine="spike"))
    assert channel.close() == 0
    return bytes(output.data)


def stream_of(board: Board, release: str, drop: tuple[str, ...] = ()) -> bytes:
    return written(registry(board, release, drop))


def take(board: Board, stream: bytes, drop: tuple[str, ...] = ()) -> Incoming:
    """Load a stream up to what its devices are, without ``apply``."""
    incoming = Incoming(board, drop)
    loader = Loader(incoming, "spike")
    loader.feed(stream)
    loader.finish()
    return incoming


def sections(stream: bytes) -> list[tuple[Section, DeviceEvent]]:
    """What is FULL in a stream, as its description says."""
    reader = Reader(sink=Sink())
    found: list[tuple[Section, DeviceEvent]] = []
    section = None
    for event in [*reader.feed(stream), *reader.finish()]:
        if isinstance(event, Section):
            section = event
        elif isinstance(event, DeviceEvent):
            assert section is not None
            assert section.type == SECTION_FULL
            found.append((section, event))
    assert reader.error is None
    return found


def contents(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def sizes(stream: bytes) -> list[int]:
    reader = Reader(sink=Sink())
    blocks = next(e for e in reader.feed(stream) if isinstance(e, RamBlocks))
    return [size for _, size in blocks.blocks]


def flat(state: Any, path: str = "") -> dict[str, Any]:
    """Every value of a decoded state by its path."""
    if isinstance(state, list):
        return {k: v for i, s in enumerate(state) for k, v in flat(s, f"{path}[{i}]").items()}
    if not isinstance(state, dict):
        return {path: state}
    values: dict[str, Any] = {}
    for name, value in state["fields"]:
        values |= flat(value, f"{path}/{name}")
    for part in state["subsections"]:
        values |= flat(part, f"{path}/{part['name']}:{part['version']}")
    return values


def rich() -> MachineState:
    """A state in which as much as possible is not at its reset value, that every release can be sent."""
    names = (
        "mie medeleg mtvec mepc mcause mtval mscratch mcounteren stvec sepc scause stval sscratch"
    )
    csrs = {name: 0x1000 + 4 * i for i, name in enumerate([*names.split(), "satp", "scounteren"])}
    csrs |= {"misa": MISA, "mstatus": 0xA00000000 | 1 << 63 | 3 << 13 | 0x1888, "mip": 0x222}
    csrs |= {"mideleg": 0x222, "fcsr": 3 << 5, "menvcfg": ADUE}
    hart = HartState(
        x=[0, *(0x8000000000000000 + i for i in range(1, 32))],
        f=[0xFFFFFFFF00000000 + i for i in range(32)],
        pc=0x80001234,
        privilege=1,
        csrs=csrs,
        pmpcfg=[0x1F, *([0] * 14), 0x80, *([0] * 48)],
        pmpaddr=[(1 << 54) - 1, *range(15), *([0] * 48)],
        reserved=0x80002000,
        reserved_value=77,
        waiting=True,
        mtimecmp=5,
    )
    csrs["mip"] |= 1 << 7
    return MachineState([hart], mtime=123_456_789, runstate="paused")


# Real streams


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.name)
def test_what_a_qemu_wrote_is_written_again(path: Path) -> None:
    data = contents(path)
    board = Board(ram=sizes(data)[0])
    incoming = take(board, data)
    incoming.apply()
    devices = sections(data)
    assert incoming.release == next(
        release
        for release, version in CPU_VERSIONS.items()
        if ("cpu", version) in [(s.idstr, s.version_id) for s, _ in devices]
    )
    again = sections(stream_of(board, incoming.release))
    # What only a machine with a network has is skipped.
    devices = [pair for pair in devices if pair[0].idstr != "slirp"]
    assert [(s.idstr, s.instance_id, s.version_id) for s, _ in again] == [
        (s.idstr, s.instance_id, s.version_id) for s, _ in devices
    ]
    for (section, theirs), (_, ours) in zip(devices, again, strict=True):
        before, after = flat(theirs.state), flat(ours.state)
        # At these, which say nothing here, a QEMU without Sstc or triggers aborts.
        unsent = ("/cpu/timer:", "/cpu/debug:")
        assert not [name for name in after if name.startswith(unsent)]
        before = {name: n for name, n in before.items() if not name.startswith(unsent)}
        different = {name for name in before | after if before.get(name) != after.get(name)}
        if section.idstr == "timer":
            # QEMU's clock has ns, the machine's ticks of 100 ns; the host's ticks mean nothing here.
            assert different <= {"/cpu_ticks_offset", "/cpu_clock_offset"}
            assert before["/cpu_clock_offset"] - after["/cpu_clock_offset"] in range(100)
        elif section.idstr == "cpu_common":
            # QEMU 10.0 and later begin with a pending timer and do not say so here.
            assert different <= {"/interrupt_request"}
        elif section.idstr == "riscv_mtimer":
            # It was set up between two ticks.
            assert different <= {"/timers"}
            assert abs(before.get("/timers", 0) - after.get("/timers", 0)) < 1000
        elif different:
            # A timer that QEMU would not set up.
            assert section.version_id < CPU_VERSIONS["11.1"]
            assert different == {"/env.mip"}
            assert after["/env.mip"] == before["/env.mip"] | 0x80
        else:
            assert not different


def likeness(layout: dict[str, Any]) -> dict[str, Any]:
    """What a layout and an entry of a description have in common."""
    fields = [
        {key: field[key] for key in ("name", "type", "size", "array_len") if key in field}
        | ({"struct": likeness(field["struct"])} if "struct" in field else {})
        for field in layout["fields"]
    ]
    parts = {s["vmsd_name"]: [s["version"], likeness(s)] for s in layout.get("subsections", ())}
    return {"fields": fields, "subsections": parts}


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.name)
def test_layouts_are_what_streams_describe(path: Path) -> None:
    described = [(s.idstr, s.version_id, d.layout) for s, d in sections(contents(path))]
    cpu = next(version for idstr, version, _ in described if idstr == "cpu")
    release = next(release for release, version in CPU_VERSIONS.items() if version == cpu)
    known = layouts("riscv", release, harts=1)
    for idstr, version, layout in described:
        if idstr == "slirp":
            continue
        assert version == known[idstr]["version"]
        assert layout is not None
        theirs, ours = likeness(layout), likeness(known[idstr])
        assert theirs["fields"] == ours["fields"]
        parts = ours["subsections"]
        # What there is, in the order of what there can be.
        assert theirs["subsections"] == {name: parts[name] for name in theirs["subsections"]}
        assert list(theirs["subsections"]) == [n for n in parts if n in theirs["subsections"]]


@pytest.mark.parametrize("release", RELEASES)
def test_section_ids_and_order_are_those_of_a_machine_without_network(release: str) -> None:
    theirs = sections(contents(SLEEPING[release]))
    ours = sections(stream_of(Board(rich()), release))
    assert [(s.idstr, s.section_id) for s, _ in ours] == [
        (s.idstr, s.section_id) for s, _ in theirs
    ]


def test_what_registers_a_guest_set() -> None:
    for release, path in SLEEPING.items():
        board = Board(ram=4 << 20)
        incoming = take(board, contents(path))
        incoming.apply()
        state = board.state()
        (hart,) = state.harts
        assert (incoming.release, incoming.dropped) == (release, [])
        assert hart.waiting
        assert hart.mtimecmp - 1_000_000 < state.mtime < hart.mtimecmp
        assert state.fromhost & 0xFF in (b"d"[0] if release in ("5.2", "7.2") else 0,)
        csrs = hart.csrs
        extensions = csrs.pop("misa")
        assert extensions >> 62 == 2
        assert extensions & MISA == MISA
        assert csrs.pop("menvcfg") & ADUE
        assert hart.pc == csrs.pop("mepc")
        assert csrs.pop("mtvec") - RAM in range(0x1000)
        assert csrs == {
            "mstatus": 1 << 63 | 0xA00000000 | 3 << 13 | 0x88,
            "fcsr": 3 << 5,
            "mscratch": 0x1111,
            "sscratch": 0x2222,
            "sepc": 0x3334,
            "stvec": 0x4444,
            "mcounteren": 7,
            "scounteren": 5,
            "mideleg": 0x222,
            "medeleg": 0xB109,
            "scause": 5,
            "stval": 0x5557,
            "mcause": 1 << 63 | 7,
            "satp": 8 << 60 | 0x80007,
            "mip": 2,
            "mie": 0x80,
        }
        assert hart.f[5] == 0x123456789ABCDEF0
        assert (hart.pmpcfg[0], hart.pmpaddr[3]) == (0x1F, 0x20000000)


# From layout to layout


@pytest.mark.parametrize("release", RELEASES)
def test_a_state_comes_back_from_every_layout(release: str) -> None:
    state = rich()
    board = Board()
    stream = stream_of(Board(state), release)
    incoming = take(board, stream)
    assert board.state() == Board().state()
    incoming.apply()
    assert incoming.release == release
    assert board.state() == state
    assert incoming.dropped == []


@pytest.mark.parametrize("release", RELEASES)
def test_several_harts(release: str) -> None:
    harts = [HartState(hart_id=i, pc=0x80000000 + i, mtimecmp=i) for i in range(3)]
    for hart in harts:
        hart.csrs = {"misa": MISA, "menvcfg": ADUE, "mstatus": 0xA00000000, "mip": 0x80}
    state = MachineState(harts, mtime=7)
    board = Board(MachineState([HartState(hart_id=i) for i in range(3)]))
    take(board, stream_of(Board(state), release)).apply()
    assert board.state() == state


def test_mstatus_has_other_bits_in_5_2() -> None:
    stream = stream_of(Board(rich()), "5.2")
    values = {s.idstr: flat(d.state) for s, d in sections(stream)}["cpu"]
    assert values["/env.mstatus"] == 1 << 63 | 3 << 13 | 0x1888
    assert values["/env.misa"] == MISA
    assert values["/env.mbadaddr"] == rich().harts[0].csrs["mtval"]
    assert values["/env.mtval"] == 0
    values = {s.idstr: flat(d.state) for s, d in sections(stream_of(Board(rich()), "7.2"))}["cpu"]
    assert values["/env.mstatus"] == 0xA00000000 | 3 << 13 | 0x1888
    assert (values["/env.misa_mxl"], values["/env.misa_ext"]) == (2, 0x14112D)


@pytest.mark.parametrize("release", RELEASES)
def test_a_timer_that_is_not_set_up_is_sent_as_due(release: str) -> None:
    state = rich()
    hart = state.harts[0]
    hart.csrs["mip"] = 0
    hart.mtimecmp = state.mtime + 1000
    values = {s.idstr: flat(d.state) for s, d in sections(stream_of(Board(state), release))}
    if release == "11.1":
        assert values["cpu"]["/env.mip"] == 0
        assert values["riscv_mtimer"]["/timers"] == hart.mtimecmp * 100
        assert values["cpu_common"]["/interrupt_request"] == 0
    else:
        assert values["cpu"]["/env.mip"] == 0x80
        assert values["cpu_common"]["/interrupt_request"] == 2
    # One that never comes is not due.
    hart.mtimecmp = (1 << 64) - 1
    values = {s.idstr: flat(d.state) for s, d in sections(stream_of(Board(state), release))}
    assert values["cpu"]["/env.mip"] == 0


def test_a_clock_beyond_that_of_qemu() -> None:
    state = rich()
    state.mtime = (1 << 64) - 5000
    del state.harts[0].csrs["mip"]
    state.harts[0].mtimecmp = state.mtime + 10
    stream = stream_of(Board(state), "11.1")
    values = {s.idstr: flat(d.state) for s, d in sections(stream)}
    assert values["timer"]["/cpu_clock_offset"] == 0
    assert values["riscv_mtimer"]["/timers"] == 1000
    board = Board()
    take(board, stream).apply()
    assert board.state() == state
    for release in ("5.2", "7.2", "10.0"):
        with pytest.raises(CannotExpressError, match="mtime is 0xffff"):
            registry(Board(state), release)
        assert registry(Board(state), release, ["mtime"]).dropped == ["mtime"]


def without_a_place(state: MachineState) -> dict[str, Callable[[], object]]:
    hart = state.harts[0]
    csrs = hart.csrs
    return {
        "menvcfg": lambda: csrs.update(menvcfg=ADUE | 0x80),
        "senvcfg": lambda: csrs.update(senvcfg=1),
        "mcountinhibit": lambda: csrs.update(mcountinhibit=0xFFFFFFFC),
        "mhpmcounter3": lambda: csrs.update(mhpmcounter3=1),
        "mhpmevent31": lambda: csrs.update(mhpmevent31=1),
        "mseccfg": lambda: csrs.update(mseccfg=1),
        "stimecmp": lambda: csrs.update(stimecmp=1000),
        "vstvec": lambda: csrs.update(vstvec=4),
        "pmpaddr16": lambda: hart.pmpaddr.__setitem__(16, 1),
        "pmpcfg63": lambda: hart.pmpcfg.__setitem__(63, 1),
    }


CANNOT = {
    "5.2": {"menvcfg", "senvcfg", "mcountinhibit", "mhpmcounter3", "mhpmevent31", "mseccfg"}
    | {"stimecmp", "vstvec", "pmpaddr16", "pmpcfg63"},
    "7.2": {"mseccfg", "stimecmp", "vstvec", "pmpaddr16", "pmpcfg63"},
    "10.0": {"stimecmp", "vstvec", "pmpaddr16", "pmpcfg63"},
    "11.1": {"stimecmp", "vstvec"},
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", list(without_a_place(rich())))
def test_what_a_layout_cannot_express_is_named(release: str, name: str) -> None:
    state = rich()
    without_a_place(state)[name]()
    if name not in CANNOT[release]:
        board = Board()
        take(board, stream_of(Board(state), release)).apply()
        assert board.state() == state
        return
    with pytest.raises(CannotExpressError, match=rf"^{name} is 0x"):
        registry(Board(state), release)
    outgoing = registry(Board(state), release, [name])
    assert outgoing.dropped == [name]
    board = Board()
    take(board, written(outgoing)).apply()
    assert board.state() != state


def test_all_that_a_layout_cannot_express_is_named_at_once() -> None:
    state = rich()
    state.harts[0].csrs |= {"senvcfg": 1, "menvcfg": 1}
    with pytest.raises(CannotExpressError) as caught:
        registry(Board(state), "5.2")
    drop = set(re.findall(r"[a-z]+vcfg", str(caught.value)))
    assert drop == {"senvcfg", "menvcfg"}
    assert registry(Board(state), "5.2", drop).dropped == sorted(drop)


def test_what_comes_up_while_the_machine_runs_is_named_too() -> None:
    board = Board(rich())
    outgoing = registry(board, "5.2")
    state = rich()
    state.harts[0].csrs["senvcfg"] = 1
    board.adopt(state)
    with pytest.raises(CannotExpressError, match="senvcfg"):
        written(outgoing)


def test_what_qemu_itself_loses_is_lost_and_said() -> None:
    state = rich()
    state.fromhost = 0x101
    state.harts[0].csrs |= {"fcsr": 0x61, "minstret": 1000, "mcycle": 2000}
    lost = {release: registry(Board(state), release).dropped for release in RELEASES}
    assert {release: sorted(names) for release, names in lost.items()} == {
        "5.2": ["fflags", "mcycle", "minstret"],
        "7.2": ["fflags"],
        "10.0": ["fflags", "fromhost"],
        "11.1": ["fflags", "fromhost"],
    }


def test_a_release_that_is_not_known() -> None:
    with pytest.raises(CannotExpressError, match=r"9\.0"):
        registry(Board(rich()), "9.0")


def test_a_hart_that_would_end_a_qemu_is_not_sent() -> None:
    with pytest.raises(CannotExpressError, match="misa of hart 0"):
        registry(Board(), "7.2")


# What is refused


class Altered(Outgoing):
    """What is sent but for some ``fields``, whose values are these."""

    fields: Mapping[str, Any] = MappingProxyType({})

    def _values(
        self, layout: dict[str, Any], machine: MachineState, hart: HartState
    ) -> dict[str, Any]:
        return {**super()._values(layout, machine, hart), **self.fields}


def altered(release: str, fields: dict[str, Any], misa: int = MISA) -> bytes:
    state = rich()
    state.harts[0].csrs["misa"] = misa
    outgoing = Altered(Board(state), release)
    outgoing.fields = fields
    return written(outgoing)


def refused(stream: bytes, drop: tuple[str, ...] = ()) -> tuple[str, str]:
    board = Board()
    with pytest.raises(LoadError) as caught:
        take(board, stream, drop).apply()
    assert board.state() == Board().state()
    cause = caught.value.cause
    return getattr(cause, "rule", ""), str(cause)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("mxl", [0, 1, 3])
def test_another_width_is_refused(release: str, mxl: int) -> None:
    field = {"env.misa": mxl << 62 | 0x14112D} if release == "5.2" else {"env.misa_mxl": mxl}
    rule, text = refused(altered(release, field))
    assert rule == "device.riscv-cpu.misa-mxl"
    assert f"misa.MXL is {mxl}" in text


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("env.priv", 2, "priv is 2"),
        ("env.frm", 8, "frm is 8"),
        ("env.mhartid", 1, "mhartid is 1"),
        ("runstate", b"tired".ljust(32, b"\0"), "no run state 'tired'"),
        ("env.mstatus", 9 << 32, "mstatus.UXL is "),
    ],
)
def test_what_a_hart_cannot_be_is_refused(field: str, value: Any, text: str) -> None:
    rule, said = refused(altered("11.1", {field: value}))
    assert rule == "section.state.refused"
    assert text in said


WITH_H = MISA | 1 << 7
WITH_V = MISA | 1 << 21
FOREIGN = [
    ("5.2", MISA, "env.virt", 1, "virt", "virt"),
    ("7.2", WITH_H, "env.vstvec", 0x80000000, "vstvec", "hyper"),
    ("7.2", MISA, "env.tdata1", [2 << 60, 0x28 << 56], "tdata1", "debug"),
    ("7.2", MISA, "env.stimecmp", 1000, "stimecmp", "stimecmp"),
    ("10.0", WITH_H, "env.hgatp", 8 << 60, "hgatp", "hyper"),
    ("10.0", MISA, "env.mvien", 1 << 1, "mvien", "mvien"),
    ("10.0", MISA, "env.miprio", [0] * 64, "miprio", "miprio"),
    ("11.1", WITH_V, "env.vl", 8, "vl", "vector"),
    ("11.1", WITH_V, "env.sctrdepth", 1, "sctrdepth", "ctr"),
    ("11.1", MISA, "env.mstatus", 0xA00000000 | 1 << 9, "mstatus.VS", "mstatus.VS"),
]


@pytest.mark.parametrize(
    ("release", "misa", "field", "value", "name", "group"), FOREIGN, ids=lambda v: str(v)[:12]
)
def test_what_a_hart_has_not_is_refused_by_name(
    release: str, misa: int, field: str, value: Any, name: str, group: str
) -> None:
    stream = altered(release, {field: value}, misa)
    rule, text = refused(stream)
    assert rule == "section.state.refused"
    assert f"{name} is " in text
    for drop in (name, group):
        board = Board()
        incoming = take(board, stream, (drop,))
        incoming.apply()
        assert incoming.dropped == [name]


def test_a_register_may_be_dropped() -> None:
    state = rich()
    state.harts[0].csrs |= {"mseccfg": 1, "senvcfg": 1}
    board = Board()
    incoming = take(board, stream_of(Board(state), "10.0"), ("mseccfg", "mhpmevent3"))
    incoming.apply()
    assert incoming.dropped == ["mseccfg"]
    del state.harts[0].csrs["mseccfg"]
    assert board.state() == state


@pytest.mark.parametrize("version", [0, 2, 4, 6, 9, 11, 13])
def test_a_cpu_of_another_version_is_refused(version: int) -> None:
    stream = stream_of(Board(rich()), "7.2")
    head = b"\3cpu" + bytes(4)
    assert stream.count(head + b"\0\0\0\5") == 1
    rule, _ = refused(stream.replace(head + b"\0\0\0\5", head + version.to_bytes(4, "big")))
    newer = version > max(CPU_VERSIONS.values())
    expected = "newer-than-supported" if newer else "older-than-minimum"
    assert rule == f"section.version.{expected}"


def test_a_stream_without_a_hart_changes_nothing() -> None:
    stream = stream_of(Board(rich()), "10.0")
    board = Board(MachineState([HartState(), HartState(hart_id=1)]))
    before = board.state()
    with pytest.raises(LoadError):
        # riscv_mtimer is of as many harts as there are.
        take(board, stream)
    incoming = take(board, stream_of(Board(rich()), "5.2"))
    with pytest.raises(ValueError, match="no state of hart 1"):
        incoming.apply()
    assert board.state() == before


class Network(Device):
    """The section of a user network without connections."""

    more = b"\0"

    def layout(self, version_id: int) -> dict[str, Any]:
        return {"size": 131}

    def save(self) -> bytes:
        return self.more + bytes(130)


def test_a_network_is_skipped() -> None:
    outgoing = registry(Board(rich()), "10.0")
    network = Network("slirp", version_id=4)
    outgoing.register(network)
    board = Board()
    take(board, written(outgoing)).apply()
    assert board.state() == rich()
    network.more = b"\x2a"
    assert refused(written(outgoing))[0] == "section.state.refused"


def test_devices_that_are_not_in_the_stream_keep_their_states() -> None:
    outgoing = registry(Board(rich()), "10.0")
    for entry in outgoing.entries[:]:
        if entry.idstr in ("timer", "cpu_common", "riscv_mtimer", "globalstate"):
            outgoing.entries.remove(entry)
    state = MachineState([HartState(mtimecmp=9, waiting=True)], mtime=77, runstate="prelaunch")
    board = Board(state)
    take(board, written(outgoing)).apply()
    now = board.state()
    assert (now.mtime, now.runstate) == (77, "prelaunch")
    assert (now.harts[0].mtimecmp, now.harts[0].waiting) == (9, True)
    assert now.harts[0].x == rich().harts[0].x


# Real QEMUs load it

# At RAM: wait for interrupts.  At RAM + 0x100, for mtvec: mtimecmp += s3, and count at s0.
WAIT = bytes.fromhex("73005010 6ff0dfff")
COUNT = bytes.fromhex("03b30400 33033301 23b06400 83220400 93821200 23205400 73002030")
COUNTER = 0x1000
TICKS = 20_000


def waiting() -> Board:
    """A hart that sleeps between timer interrupts, 2 ms apart, and counts them."""
    hart = HartState(pc=RAM, waiting=True, mtimecmp=50_000_000 + TICKS)
    hart.x[8], hart.x[9], hart.x[19] = RAM + COUNTER, 0x2004000, TICKS
    hart.x[31] = 0x123456789ABCDEF0
    hart.csrs = {"misa": MISA, "mstatus": 0xA00000000 | 0x1808, "mie": 0x80, "mtvec": RAM + 0x100}
    hart.csrs["menvcfg"] = ADUE
    board = Board(MachineState([hart], mtime=50_000_000, runstate="paused"), ram=16 << 20)
    board.ram.write(0, WAIT)
    board.ram.write(0x100, COUNT)
    return board


def release_of(qemu: Qemu) -> str:
    """The release whose layouts ``qemu`` has; skips where they are not known."""
    version = qemu.execute("query-version")["qemu"]
    release = f"{version['major']}.{version['minor']}"
    if release not in RELEASES:
        pytest.skip(f"the layouts of QEMU {release} are not known: not held against it")
    return release


def hand_over(qemu: Qemu, directory: Path, stream: bytes) -> None:
    (directory / "stream").write_bytes(stream)
    qemu.execute("migrate-incoming", uri="exec:cat stream")
    assert qemu.migration()["status"] == "completed"


def counter(qemu: Qemu) -> int:
    said: str = qemu.execute("human-monitor-command", command_line=f"xp /1wx {RAM + COUNTER:#x}")
    return int(said.split()[-1], 16)


def counts_on(qemu: Qemu) -> int:
    """Wait until the guest has counted on by ten interrupts."""
    first = counter(qemu)
    while (now := counter(qemu)) < first + 10:
        time.sleep(0.01)
    return now


@pytest.mark.parametrize("came_in", RELEASES)
def test_a_real_qemu_goes_on_with_what_came_in_any_layout(came_in: str, tmp_path: Path) -> None:
    options = ("-nic", "none")
    board = Board(ram=16 << 20)
    take(board, stream_of(waiting(), came_in)).apply()
    with Qemu(tmp_path, *options, incoming=True) as qemu:
        release = release_of(qemu)
        hand_over(qemu, tmp_path, stream_of(board, release))
        registers = qemu.execute("human-monitor-command", command_line="info registers").split()
        assert registers[registers.index("pc") + 1] == f"{RAM:016x}"
        assert registers[registers.index("x31/t6") + 1] == "123456789abcdef0"
        qemu.execute("cont")
        assert qemu.execute("query-status")["status"] == "running"
        counted = counts_on(qemu)
        qemu.execute("stop")
        qemu.execute("migrate", uri="exec:cat > back.part && mv back.part back")
        assert qemu.migration()["status"] == "completed"
    while not (tmp_path / "back").exists():
        time.sleep(0.01)
    board = Board(ram=16 << 20)
    incoming = take(board, (tmp_path / "back").read_bytes())
    incoming.apply()
    state = board.state()
    assert incoming.release == release
    final = int.from_bytes(board.ram.view[COUNTER : COUNTER + 8], "little")
    assert final >= counted
    assert state.harts[0].mtimecmp == 50_000_000 + TICKS * (final + 1)
    assert state.harts[0].reserved == NO_RESERVATION
    assert state.mtime > 50_000_000
    with Qemu(tmp_path, *options, incoming=True) as qemu:
        hand_over(qemu, tmp_path, stream_of(board, release))
        qemu.execute("cont")
        counts_on(qemu)
