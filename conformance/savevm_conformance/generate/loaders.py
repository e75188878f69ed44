"""Streams that a reader takes and a machine may not: what binds who loads them into one.

The machine is the board "spike" of a QEMU with 16 KiB of RAM; the verdict of a loader is that of the
rule, whatever QEMU does.
"""

from collections.abc import Iterator

from savevm_conformance.generate.accepts import PAUSED, UNDESCRIBED, accept, found, live_ram, opaque
from savevm_conformance.generate.model import SPIKE, Finding, Vector, Verdict, seed
from savevm_conformance.wire import MAIN_LENGTH, ROM, ROM_LENGTH, ZERO, Wire, be32, be64, counted
from savevm_spec.devices import layouts

CLOCK = bytes(24)


def loaders() -> list[Vector]:
    """The vectors that a reader accepts, and a machine refuses or may refuse."""
    return [
        vector
        for part in (_configuration, _sections, _kinds, _ram, _harts, _commands)
        for vector in part()
    ]


def _bound(
    name: str,
    wire: Wire,
    description: str,
    rule: str,
    *findings: Finding,
    loader: Verdict = "reject",
    notes: str | None = None,
) -> Vector:
    return accept(
        name, wire, description, rule, findings=findings, loader=loader, bound=rule, notes=notes
    )


def _undescribed(wire: Wire, idstr: str = "timer") -> tuple[Finding, ...]:
    return found(wire, f"{idstr}.body", UNDESCRIBED, section=idstr)


def _configuration() -> Iterator[Vector]:
    for slug, name, what in (
        ("of-another-machine", b"virt", "The configuration of another machine."),
        ("of-a-longer-name", b"spike64", "A machine name that begins as the machine's own."),
        ("of-a-shorter-name", b"spi", "A machine name that the machine's own begins with."),
    ):
        wire = Wire().header().machine(name)
        yield _bound(
            f"configuration/{slug}", live_ram(wire).eof(), what, "configuration.machine.differs"
        )


def _sections() -> Iterator[Vector]:
    wire = opaque(Wire().header().machine(), 7, b"rtc", CLOCK, 2).eof()
    yield _bound(
        "section/device-that-is-not-there",
        wire,
        "A device that the machine has not.",
        "section.unknown",
        *_undescribed(wire, "rtc"),
    )
    for slug, instance in (("that-is-not-there", 7), ("ffffffff", 0xFFFFFFFF)):
        wire = opaque(Wire().header().machine(), 7, b"timer", CLOCK, 2, instance=instance).eof()
        yield _bound(
            f"section/instance-{slug}",
            wire,
            "An instance of a device of which the machine has only one.",
            "section.instance.unknown",
            *_undescribed(wire),
        )
    wire = Wire().header().machine().section(1, 2, b"ram\0", 0, 4)
    wire.put(be64(0x10), "ram\0.body").footer(2).eof()
    yield _bound(
        "section/ram-with-nul",
        wire,
        "An idstr that is ram and a NUL.",
        "section.unknown",
        *_undescribed(wire, "ram\0"),
    )
    for version in (3, 0x80000002):
        wire = opaque(Wire().header().machine(), 7, b"timer", CLOCK, version).eof()
        yield _bound(
            f"section/timer-version-{version:x}",
            wire,
            f"Version {version:#x} of a device that the machine has in version 2.",
            "section.version.newer-than-supported",
            *_undescribed(wire),
        )
    wire = opaque(Wire().header().machine(), 7, b"timer", CLOCK, 0).eof()
    yield _bound(
        "section/timer-version-0",
        wire,
        "Version 0 of a device that the machine has in version 2, and reads from version 1 on.",
        "section.version.older-than-minimum",
        *_undescribed(wire),
    )
    wire = opaque(
        Wire().header().machine(), 7, b"globalstate", PAUSED.replace(b"paused", b"asleep")
    )
    yield _bound(
        "section/run-state-that-is-none",
        wire.eof(),
        "A run state that there is not.",
        "section.state.refused",
        *_undescribed(wire, "globalstate"),
    )


_TAKEN = "QEMU 5.2 to 11.1 take it."


def _kinds() -> Iterator[Vector]:
    wire = Wire().header().machine().section(1, 7, b"timer", 0, 2).put(CLOCK, "timer.body")
    wire.footer(7).eof()
    yield _bound(
        "section/device-as-start",
        wire,
        "A device that begins with START.",
        "section.kind",
        *_undescribed(wire),
        loader="either",
        notes=_TAKEN,
    )
    wire = opaque(Wire().header().machine(), 7, b"timer", CLOCK, 2)
    opaque(wire, 7, b"timer", CLOCK, 2).eof()
    yield _bound(
        "section/device-twice",
        wire,
        "A device that comes twice.",
        "section.repeated",
        *_undescribed(wire),
        *found(wire, "timer.body#2", UNDESCRIBED, section="timer"),
        loader="either",
        notes=_TAKEN,
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4)
    wire.blocks(main=MAIN_LENGTH, rom=ROM_LENGTH).end_of_section().footer(2)
    yield _bound(
        "section/live-without-end",
        wire.eof(),
        "RAM that begins and does not end.",
        "section.end.missing",
        loader="either",
        notes=_TAKEN,
    )
    wire = live_ram(Wire().header().machine()).again(2, 2, "late").end_of_section().footer(2)
    yield _bound(
        "section/part-after-end",
        wire.eof(),
        "A PART behind the END.",
        "section.part.after-end",
        loader="either",
        notes=_TAKEN,
    )


def _ram() -> Iterator[Vector]:
    def listed(**lengths: int) -> Wire:
        wire = Wire().header().machine().section(1, 2, b"ram", 0, 4)
        wire.blocks(**lengths).end_of_section().footer(2)
        return wire.again(3, 2, "end").end_of_section().footer(2).eof()

    for slug, length in (("shorter", MAIN_LENGTH - 4096), ("longer", MAIN_LENGTH + 4096)):
        yield _bound(
            f"ram/block-{slug}-than-the-machine-s",
            listed(main=length, rom=ROM_LENGTH),
            f"A block of {length:#x} bytes that has {MAIN_LENGTH:#x} in the machine.",
            "ram.block.size",
        )
    yield _bound(
        "ram/block-that-is-not-there",
        listed(main=MAIN_LENGTH, more=0x1000),
        "A block that the machine has not.",
        "ram.block.unknown",
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).put(be64(ROM_LENGTH | 4))
    wire.put(counted(ROM + b"\0") + be64(ROM_LENGTH)).end_of_section().footer(2)
    yield _bound(
        "ram/block-with-nul",
        wire.again(3, 2, "end").end_of_section().footer(2).eof(),
        "A block whose name is that of one of the machine and a NUL.",
        "ram.block.unknown",
    )
    wire = Wire().header().machine().section(1, 2, b"ram", 0, 4).blocks(rom=ROM_LENGTH)
    wire.page(ZERO, b"riscv.spike.mrom").end_of_section().footer(2)
    yield accept(
        "ram/block-left-out",
        wire.again(3, 2, "end").end_of_section().footer(2).eof(),
        "Only one of the two blocks of the machine: what is not listed is not sent.",
        "ram.block.unknown",
    )


# The extension J, in misa.
_J = 1 << 9


def _harts() -> Iterator[Vector]:
    for slug, what, rule, values in (
        (
            "mxl-0",
            "A hart whose misa says that it has no width.",
            "device.riscv-cpu.misa-mxl",
            {"env.misa_mxl": 0},
        ),
        (
            "j-and-privilege-2",
            "A hart with pointer masking (J) in the mode that there is not.",
            "section.state.refused",
            {"env.misa_ext": _J, "env.priv": 2},
        ),
    ):
        yield accept(
            f"section/spike-7.2-{slug}",
            _hart("7.2", values),
            what,
            rule,
            source="found by fuzzing QEMU 7.2",
            loader="reject",
            bound=rule,
            machine={**SPIKE, "since": "7.2", "until": "7.2"},
        )


def _hart(release: str, values: dict[str, int]) -> Wire:
    """What a QEMU wrote, with other values in its hart, bits of ``env.misa_ext`` besides its own."""
    wire = seed(f"spike-{release}")
    head = counted(b"cpu") + be32(0)
    at = wire.data.index(head) + len(head) + 4
    for field in layouts("riscv", release, harts=1)["cpu"]["fields"]:
        name, size = field["name"], field["size"]
        if name in values:
            before = int.from_bytes(wire.data[at : at + size]) if name == "env.misa_ext" else 0
            wire.data[at : at + size] = (before | values[name]).to_bytes(size)
        at += size * field.get("array_len", 1)
    return wire


def _commands() -> Iterator[Vector]:
    for number, payload, slug, what in (
        (8, b"", "enable-colo", "ENABLE_COLO to a machine that does no COLO."),
        (4, b"", "postcopy-listen", "POSTCOPY_LISTEN without POSTCOPY_ADVISE."),
        (5, b"", "postcopy-run", "POSTCOPY_RUN without POSTCOPY_LISTEN."),
        (2, be32(1), "ping", "PING without a return path."),
    ):
        wire = Wire().header().machine().command(number, payload)
        yield _bound(
            f"command/{slug}-unasked",
            live_ram(wire).eof(),
            what,
            "command.unsupported",
            loader="either" if slug == "ping" else "reject",
        )
