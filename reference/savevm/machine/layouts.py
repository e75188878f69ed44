"""The state of the board ``spike`` as QEMU releases lay it out in streams, both ways.

``savevm_spec.devices.layouts`` says which fields there are; here they get their meaning.  A field of
``cpu`` is a part of a ``HartState``, most under the name of a CSR, or says what QEMU's CPU is
(``_FIXED``); all others are of extensions that a hart here has not, and must be at their reset
values.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import chain, count
from typing import Any, Final, Protocol

from savevm.machine.state import PMP_ENTRIES, HartState, MachineState
from savevm.ram import RamBlock
from savevm.savable import CannotExpressError, Device, Ram, RefusedError, Registry
from savevm_spec.devices import layouts

__all__ = ["LOST", "RELEASES", "Board", "Incoming", "Outgoing", "registry"]

RELEASES: Final = ("5.2", "7.2", "10.0", "11.1")
# What QEMU itself loses on the way where a layout has no place for it.
LOST: Final = frozenset({"fflags", "mcycle", "minstret", "tohost", "fromhost"})

_NEVER: Final = (1 << 64) - 1
_NO_TIMER: Final = -1
_NS_PER_TICK: Final = 100
_NS_END: Final = 1 << 63
_RESET_PC: Final = 0x1000
_INTERRUPT_HARD: Final = 2  # CPU_INTERRUPT_HARD of cpu_common.interrupt_request
_EXCP_INTERRUPT: Final = 0x10000  # exception_index from here on: QEMU's own reasons to stop

_MXL: Final = 2
_SHOWN: Final = 60  # characters of a value that are told
_MISA_H: Final = 1 << 7
_MISA_V: Final = 1 << 21
_XL: Final = 0xF << 32  # mstatus.SXL and UXL, and what they are where both are of 64 bits
_XL_64: Final = 0xA << 32
_SD: Final = 1 << 63
_FS: Final = 3 << 13  # mstatus.FS, and its value "dirty"
_MTIP: Final = 1 << 7
_PBMTE: Final = 1 << 62
_ADUE: Final = 1 << 61
_VS_INTERRUPTS: Final = 0x1444
# Bits of mstatus that belong to extensions.
_MSTATUS_OTHER: Final = {
    "mstatus.VS": 3 << 9,
    "mstatus.SPELP": 1 << 23,
    "mstatus.SDT": 1 << 24,
    "mstatus.GVA": 1 << 38,
    "mstatus.MPV": 1 << 39,
    "mstatus.MPELP": 1 << 41,
    "mstatus.MDT": 1 << 42,
}

_RUNSTATES: Final = frozenset(
    {
        *("colo", "debug", "finish-migrate", "guest-panicked", "inmigrate", "internal-error"),
        *("io-error", "paused", "postmigrate", "preconfig", "prelaunch", "restore-vm", "running"),
        *("save-vm", "shutdown", "suspended", "watchdog"),
    }
)
_PRIVILEGES: Final = (0, 1, 3)

# CSRs that are fields as they are.
_CSRS: Final = (
    *("mie", "medeleg", "mtvec", "mepc", "mcause", "mtval", "mscratch", "mcounteren"),
    *("mcountinhibit", "stvec", "sepc", "scause", "stval", "sscratch", "satp", "scounteren"),
    *("senvcfg", "mseccfg"),
)
# CSRs that say what a hart is.
_NOT_STATE: Final = frozenset({"mhartid", "mvendorid", "marchid", "mimpid", "mconfigptr"})
# CSRs that every layout has, in one form or the other
_EVERYWHERE: Final = frozenset({"mstatus", "misa", "mip", "mideleg", "fcsr"})
# Index in pmu_ctrs → CSR
_COUNTERS: Final = {0: "mcycle", 2: "minstret", **{i: f"mhpmcounter{i}" for i in range(3, 32)}}
_EVENTS: Final = {i: f"mhpmevent{i}" for i in range(3, 32)}
# CSRs that a hart may do without
_OPTIONAL: Final = frozenset({*_COUNTERS.values(), *_EVENTS.values(), "mseccfg"})
# CSR → field, where 5.2 has another
_FIELDS_5_2: Final = {"stval": "env.sbadaddr", "mtval": "env.mbadaddr"}

_VEXT_1_0: Final = 0x10000
# What the default CPU of a release says of itself.  A stream may say anything.
_FIXED: Final[dict[str, dict[str, int]]] = {
    "5.2": {"env.priv_ver": 0x11100, "env.vext_ver": 0x701, "env.features": 3},
    "7.2": {
        "env.priv_ver": 2,
        "env.features": 0x13,
        "env.misa_mxl_max": _MXL,
        "env.miclaim": 0x1000,
    },
    "10.0": {"env.priv_ver": 3, "env.vext_ver": _VEXT_1_0, "env.miclaim": 0x1000},
    "11.1": {"env.priv_ver": 3, "env.miclaim": 0x1000},
}
_NOT_READ: Final = frozenset(
    {
        *(name for fixed in _FIXED.values() for name in fixed),
        *("env.misa_mask", "env.misa_ext_mask", "env.resetvec", "unused"),
        # Which trigger is selected, where all of them are of type "none".
        "env.trigger_cur",
        # What QEMU last made of a trap, and CSRs of an older privileged specification.
        *("env.badaddr", "env.guest_phys_fault_addr", "env.sptbr"),
    }
)
# Read by ``Incoming``, besides CSRs of the same name
_TAKEN: Final = frozenset(
    {
        *("env.gpr", "env.fpr", "env.pc", "env.load_res", "env.load_val", "env.frm", "env.misa"),
        *("env.misa_mxl", "env.misa_ext", "env.priv", "env.mhartid", "env.pmu_ctrs"),
        *("env.mhpmevent_val", "env.mtohost", "env.mfromhost", "env.timecmp"),
        "env.pmp_state.pmp",
    }
)
# Reset values that are not 0, of what a hart here has not: the standard order of interrupts, no
# vector type, triggers of type "none".
_IPRIO: Final = bytes.fromhex(
    "24211e1b0e0b0805ffffffffffffffff"
    "252322201f1d1c1a0f0d0c0a09070604"
    "ffffffffffffffffffffffffffffffff"
)
_RESET: Final[dict[str, Any]] = {
    "env.miprio": [*bytes.fromhex("ff141811ff151912ff13170016ffffff"), *_IPRIO],
    "env.siprio": [*bytes.fromhex("ff141811ff151912ff00171016ffffff"), *_IPRIO],
    "env.hviprio": [*bytes.fromhex("00140000001500000000000000ffffff"), *_IPRIO[:8], *bytes(40)],
    "env.vsstatus": _XL_64,
    "env.mstatus_hs": _XL_64,
    "env.vill": True,
    "env.tdata1": [2 << 60, 2 << 60],
    "env.stimer": _NO_TIMER,
    "env.vstimer": _NO_TIMER,
    "env.mmte": 0x201,
}
# Subsections of ``cpu`` that are sent, and the extensions for which they are.  Others are sent only
# when there is something in them, though QEMU sends "cpu/timer" and "cpu/debug" too: one that was
# started with sstc=off or debug=off aborts at them.
_SENT: Final = {
    **dict.fromkeys(("cpu/pmp", "cpu/envcfg"), ~0),
    "cpu/hyper": _MISA_H,
    "cpu/vector": _MISA_V,
}
# What else the default CPU of 11.1 has, and none without vectors by default
_SENT_11_1: Final = dict.fromkeys(
    ("cpu/smtateen", "cpu/elp", "cpu/ssp", "cpu/ctr", "cpu/mseccfg"), _MISA_V
)
# Section ids, which are numbers of registrations in QEMU: of RAM, of the first hart
_SECTION_IDS: Final = {"5.2": (2, 4), "7.2": (2, 4), "10.0": (1, 3), "11.1": (1, 3)}


class Board(Protocol):
    """What has the state."""

    @property
    def ram(self) -> RamBlock: ...

    @property
    def mrom(self) -> RamBlock: ...

    def state(self) -> MachineState: ...

    def adopt(self, state: MachineState) -> None: ...


class _Losses:
    """What is lost: its ``names`` so far, and what may not be, which ``settle`` raises as ``error``."""

    def __init__(self, drop: Iterable[str], error: type[ValueError]) -> None:
        self._allowed: Final = LOST | set(drop)
        self._error: Final = error
        self._refused: Final[dict[str, str]] = {}
        self.names: Final[list[str]] = []

    def lose(self, name: str, value: object, why: str, group: str = "") -> None:
        """``name`` has a ``value`` that is lost; so may be all of a ``group``."""
        if name not in self._allowed and group not in self._allowed:
            shown = f"{value:#x}" if type(value) is int else str(value)
            shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
            self._refused.setdefault(name, f"{name} is {shown}, {why}")
        elif name not in self.names:
            self.names.append(name)

    def settle(self) -> None:
        """Raise, if something may not be lost; all of it is named, so that one look is enough."""
        first, *others = self._refused.values() or [""]
        if first:
            more = f"; nor can {', '.join([*self._refused][1:])} be kept" if others else ""
            self._refused.clear()
            raise self._error(first + more)


def _zero(field: dict[str, Any]) -> Any:
    """What a field holds that nobody has written."""
    if "array_len" in field:
        element = {key: value for key, value in field.items() if key != "array_len"}
        return [_zero(element) for _ in range(field["array_len"])]
    if "struct" in field:
        fields = [[part["name"], _zero(part)] for part in field["struct"]["fields"]]
        return {"fields": fields, "subsections": []}
    return bytes(field["size"]) if field["type"] in ("buffer", "unused_buffer") else 0


def _reset(release: str, field: dict[str, Any]) -> Any:
    """What a field of ``cpu`` holds after a reset."""
    name = field["name"]
    if release == "5.2" and name in ("env.vsstatus", "env.mstatus_hs"):
        return 0
    return _RESET.get(name) or _zero(field)


def _fields(layout: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field, with the name of the subsection that it is in ("": none)."""
    for field in layout["fields"]:
        yield "", field
    for part in layout.get("subsections", ()):
        for inner, field in _fields(part):
            yield inner or part["vmsd_name"], field


def _values(state: dict[str, Any]) -> dict[str, Any]:
    """The values of a decoded state by the names of their fields, those of subsections too."""
    values = dict(state["fields"])
    for part in state["subsections"]:
        values.update(_values(part))
    return values


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _clock(machine: MachineState) -> int:
    """QEMU's clock in ns, from which ``mtime`` may be away."""
    clock = machine.mtime * _NS_PER_TICK
    return clock if clock < _NS_END else 0


def _deadline(machine: MachineState, compare: int) -> int:
    """When ``mtime`` comes to ``compare``, in ns of QEMU's clock; ``_NO_TIMER``: never, or it has."""
    at = _clock(machine) + (compare - machine.mtime) * _NS_PER_TICK
    return at if machine.mtime < compare and at < _NS_END else _NO_TIMER


def _pending(release: str, machine: MachineState, hart: HartState) -> int:
    """``mip`` as it is sent.

    QEMU sets no timer up for a compare register that comes without one: a guest that waits for it
    would wait for ever.  Told that its time has come, it looks at the clock and sets the timer again.
    """
    mip = hart.csrs.get("mip", 0)
    if release != "11.1" and _deadline(machine, hart.mtimecmp) != _NO_TIMER:
        mip |= _MTIP
    return mip


def _cpu_values(release: str, machine: MachineState, hart: HartState) -> dict[str, Any]:
    """Values of fields of ``cpu``; those that the release has not mean nothing."""
    csrs = hart.csrs
    misa = csrs.get("misa", 0)
    mstatus = csrs.get("mstatus", 0) & ~(_SD | _XL)
    if release != "5.2":
        mstatus |= _XL_64
    elif mstatus & _FS == _FS:
        mstatus |= _SD
    mideleg = csrs.get("mideleg", 0)
    # 7.2 sets them when the register is written.
    if misa & _MISA_H and (release in ("10.0", "11.1") or (release == "7.2" and mideleg)):
        mideleg |= _VS_INTERRUPTS
    values = {f"env.{name}": csrs.get(name, 0) for name in _CSRS}
    if release == "5.2":
        values |= {field: csrs.get(name, 0) for name, field in _FIELDS_5_2.items()}
        del values["env.mtval"]
    return {
        **values,
        "env.vext_ver": _VEXT_1_0 if misa & _MISA_V else 0,
        **_FIXED[release],
        "env.gpr": hart.x,
        "env.fpr": hart.f,
        "env.pc": hart.pc,
        "env.load_res": hart.reserved,
        "env.load_val": hart.reserved_value,
        "env.frm": csrs.get("fcsr", 0) >> 5 & 7,
        "env.misa": misa,
        "env.misa_mask": misa,
        "env.misa_mxl": misa >> 62,
        "env.misa_ext": misa & 0xFFFFFFFF,
        "env.misa_ext_mask": misa & 0xFFFFFFFF,
        "env.priv": hart.privilege,
        "env.resetvec": _RESET_PC,
        "env.mhartid": hart.hart_id,
        "env.mstatus": mstatus,
        "env.mip": _pending(release, machine, hart),
        "env.mideleg": mideleg,
        "env.menvcfg": csrs.get("menvcfg", 0) & (~_ADUE if release == "7.2" else ~0),
        "env.mhpmevent_val": [csrs.get(_EVENTS.get(i, ""), 0) for i in range(32)],
        "env.timecmp": hart.mtimecmp,
        "env.mtohost": 0 if hart.hart_id else machine.tohost,
        "env.mfromhost": 0 if hart.hart_id else machine.fromhost,
    }


def _cpu_arrays(fields: dict[str, Any], hart: HartState) -> dict[str, Any]:
    """Values of the fields of ``cpu`` that are arrays of structs, by what their elements are like."""
    values = {}
    if counters := fields.get("env.pmu_ctrs"):
        # They count on from here: QEMU adds the host's own, less "prev", which is 0.
        values["env.pmu_ctrs"] = elements = _zero(counters)
        for i, name in _COUNTERS.items():
            elements[i]["fields"][0][1] = hart.csrs.get(name, 0)
    values["env.pmp_state.pmp"] = elements = _zero(fields["env.pmp_state.pmp"])
    for i in range(len(elements)):
        elements[i]["fields"] = [["addr_reg", hart.pmpaddr[i]], ["cfg_reg", hart.pmpcfg[i]]]
    return values


def _check_cpu(release: str, fields: dict[str, Any], hart: HartState, losses: _Losses) -> None:
    """Lose what there are no ``fields`` for."""
    if hart.csrs.get("misa", 0) >> 62 != _MXL:
        # QEMU would not load it.
        raise CannotExpressError(f"misa of hart {hart.hart_id} does not say 64 bits")
    why = f"for which the layout of QEMU {release} has no place"
    places = {name: f"env.{name}" for name in (*_CSRS, "menvcfg")}
    places |= dict.fromkeys(_COUNTERS.values(), "env.pmu_ctrs")
    places |= dict.fromkeys(_EVENTS.values(), "env.mhpmevent_val")
    if release == "5.2":
        places |= _FIELDS_5_2
    # Reset values of other releases, and counters that count nothing
    harmless = {"menvcfg": _ADUE | _PBMTE, "mcountinhibit": 0xFFFFFFF8}
    for name, value in hart.csrs.items():
        if name in _NOT_STATE | _EVERYWHERE or places.get(name) in fields:
            continue
        if value & ~harmless.get(name, 0) and (name, value) != ("stimecmp", _NEVER):
            losses.lose(name, value, why)
    if flags := hart.csrs.get("fcsr", 0) & 0x1F:
        losses.lose("fflags", flags, why)
    for i in range(fields["env.pmp_state.pmp"]["array_len"], PMP_ENTRIES):
        for name, value in ((f"pmpaddr{i}", hart.pmpaddr[i]), (f"pmpcfg{i}", hart.pmpcfg[i])):
            if value:
                losses.lose(name, value, why, "pmp")


def _fit(field: dict[str, Any], value: Any, losses: _Losses) -> Any:
    """``value``, or what a field has room for."""
    if type(value) is not int or value < 1 << 8 * field["size"]:
        return value
    name = field["name"].removeprefix("env.")
    losses.lose(name, value, f"for which there are only {field['size']} bytes")
    return value & (1 << 8 * field["size"]) - 1


class _Section(Device):
    """A section of a board's devices, of a hart where it is one's (else 0)."""

    def __init__(self, outgoing: "Outgoing", layout: dict[str, Any], hart: int) -> None:
        super().__init__(layout["vmsd_name"], hart, version_id=layout["version"])
        self._outgoing: Final = outgoing
        self._whole: Final = layout
        self._hart: Final = hart
        self._state: dict[str, Any] = {}

    def layout(self, version_id: int) -> dict[str, Any]:
        layout, self._state = self._outgoing.section(self._whole, self._hart)
        return layout

    def save(self) -> Any:
        return self._state


class Outgoing(Registry):
    """What a release of QEMU would send of ``board``, with the names of ``drop`` lost.

    ``dropped`` are names of what was not at its reset value and is lost.  Raises
    ``CannotExpressError`` where more would be, now or when it is written.
    """

    def __init__(self, board: Board, release: str, drop: Iterable[str] = ()) -> None:
        super().__init__()
        if release not in RELEASES:
            raise CannotExpressError(
                f"no layouts of QEMU {release!r}, but of {', '.join(RELEASES)}"
            )
        self.release: Final = release
        self._board: Final = board
        self._losses: Final = _Losses(drop, CannotExpressError)
        harts = len(board.state().harts)
        known = layouts("riscv", release, harts=harts)
        ram, first = _SECTION_IDS[release]
        self.register(Ram([board.ram, board.mrom]))
        self.register(_Section(self, known["timer"], 0))
        for hart in range(harts):
            self.register(_Section(self, known["cpu_common"], hart))
            self.register(_Section(self, known["cpu"], hart))
        for idstr in ("riscv_mtimer", "globalstate"):
            if idstr in known:
                self.register(_Section(self, known[idstr], 0))
        ids = chain((ram, 0), count(first))
        for entry in self.entries:
            entry.section_id = next(ids)
            if isinstance(entry, _Section):
                entry.layout(entry.version_id)

    @property
    def dropped(self) -> list[str]:
        """Names of what is lost."""
        return self._losses.names

    def section(self, layout: dict[str, Any], hart: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The layout with the subsections that are sent, and the state, of the machine as it is."""
        machine = self._board.state()
        values = self._values(layout, machine, machine.harts[hart])
        sent = _SENT | _SENT_11_1 if self.release == "11.1" else _SENT
        misa = machine.harts[hart].csrs.get("misa", 0)

        def state(part: dict[str, Any]) -> tuple[dict[str, Any], bool]:
            fields = []
            changed = False
            for field in part["fields"]:
                reset = _reset(self.release, field)
                value = _fit(field, values.get(field["name"], reset), self._losses)
                fields.append([field["name"], value])
                changed = changed or value != reset
            return {"fields": fields, "subsections": []}, changed

        whole, _ = state(layout)
        parts = []
        for part in layout.get("subsections", ()):
            inner, changed = state(part)
            if changed or misa & sent.get(part["vmsd_name"], 0):
                name, version = part["vmsd_name"], part["version"]
                whole["subsections"].append({"name": name, "version": version, **inner})
                parts.append(part)
        self._losses.settle()
        written = {key: value for key, value in layout.items() if key != "subsections"}
        return written | ({"subsections": parts} if parts else {}), whole

    def _values(
        self, layout: dict[str, Any], machine: MachineState, hart: HartState
    ) -> dict[str, Any]:
        """Values of fields; the others are at their reset values."""
        idstr = layout["vmsd_name"]
        if idstr == "cpu":
            fields = {field["name"]: field for _, field in _fields(layout)}
            _check_cpu(self.release, fields, hart, self._losses)
            return _cpu_values(self.release, machine, hart) | _cpu_arrays(fields, hart)
        clock = _clock(machine)
        ahead = machine.mtime - clock // _NS_PER_TICK
        if idstr == "timer":
            if ahead and self.release != "11.1":
                why = f"which is beyond the clock of QEMU {self.release}"
                self._losses.lose("mtime", machine.mtime, why)
            return {"cpu_clock_offset": clock}
        if idstr == "cpu_common":
            pending = _pending(self.release, machine, hart)
            return {
                "halted": int(hart.waiting),
                "interrupt_request": _INTERRUPT_HARD if pending else 0,
            }
        if idstr == "riscv_mtimer":
            compares = [h.mtimecmp for h in machine.harts]
            timers = [_deadline(machine, compare) for compare in compares]
            one = len(compares) == 1
            return {
                "time_delta": ahead,
                "timecmp": compares[0] if one else compares,
                "timers": timers[0] if one else timers,
            }
        for name in ("tohost", "fromhost"):
            value = getattr(machine, name)
            if value and self.release not in ("5.2", "7.2"):
                self._losses.lose(name, value, f"and QEMU {self.release} does not send it")
        text = machine.runstate.encode("ascii") + b"\0"
        room = next(f["size"] for f in layout["fields"] if f["name"] == "runstate")
        return {
            "size": len(text),
            "runstate": text.ljust(room, b"\0"),
            "has_vm_was_suspended": 1,
        }


def registry(board: Board, release: str, drop: Iterable[str] = ()) -> Outgoing:
    """What is saved of ``board`` in the layouts of a QEMU release: see ``Outgoing``."""
    return Outgoing(board, release, drop)


class _Taken(Device):
    """A section of any release, as it comes."""

    def __init__(
        self, incoming: "Incoming", idstr: str, hart: int, versions: Iterable[int]
    ) -> None:
        self._versions: Final = sorted(set(versions))
        super().__init__(
            idstr, hart, version_id=self._versions[-1], minimum_version_id=self._versions[0]
        )
        self._incoming: Final = incoming
        self._hart: Final = hart

    def loads(self, version_id: int) -> bool:
        return version_id in self._versions

    def layout(self, version_id: int) -> dict[str, Any]:
        # Where the same version has two layouts, the newer reads both.
        return next(
            known[self.idstr]
            for known in reversed(self._incoming.layouts.values())
            if self.idstr in known and known[self.idstr]["version"] == version_id
        )

    def load(self, state: Any, version_id: int) -> None:
        self._incoming.take(self.idstr, self._hart, version_id, _values(state))


class Incoming(Registry):
    """Takes a stream of any release; ``board`` is as it was until ``apply``, but for its RAM.

    What a hart here has not, and is not at its reset value, is refused (``section.state.refused``)
    unless its name is in ``drop``.  Devices that the stream does not have keep their states.

    Attributes: ``release`` ("" before ``cpu`` has come), ``dropped`` (names of what was lost) and
    ``ram``.
    """

    def __init__(self, board: Board, drop: Iterable[str] = ()) -> None:
        super().__init__()
        self.release = ""
        self._board: Final = board
        self._drop: Final = _OPTIONAL & set(drop)
        self._losses: Final = _Losses(drop, ValueError)
        self.state: Final = deepcopy(board.state())
        harts = len(self.state.harts)
        self.layouts: Final = {r: layouts("riscv", r, harts=harts) for r in RELEASES}
        self._cpus: Final[set[int]] = set()
        self._delta = 0
        self.ram: Final = Ram([board.ram, board.mrom])
        self.register(self.ram)
        for idstr in ("timer", "slirp", "cpu_common", "cpu", "riscv_mtimer", "globalstate"):
            versions = [
                known[idstr]["version"] for known in self.layouts.values() if idstr in known
            ]
            for hart in range(harts if idstr in ("cpu_common", "cpu") else 1):
                self.register(_Taken(self, idstr, hart, versions))

    @property
    def dropped(self) -> list[str]:
        """Names of what was lost."""
        return self._losses.names

    def apply(self) -> None:
        """Have the board adopt what has come.

        Raises ``ValueError``, also where the stream had not all harts; the board is as it was then.
        """
        for hart in range(len(self.state.harts)):
            if hart not in self._cpus:
                raise ValueError(f"the stream has no state of hart {hart}")
        self._board.adopt(self.state)

    def take(self, idstr: str, hart: int, version: int, values: dict[str, Any]) -> None:
        """Take over the values of a section; raises ``ValueError``."""
        state = self.state
        if idstr == "cpu":
            self._cpu(version, values, state.harts[hart])
            self._cpus.add(hart)
        elif idstr == "cpu_common":
            reason = values.get("exception_index", _EXCP_INTERRUPT)
            if 0 <= reason < _EXCP_INTERRUPT:
                self._refuse("exception_index", reason)
            if values.get("crash_occurred"):
                self._refuse("crash_occurred", 1)
            state.harts[hart].waiting = bool(values["halted"])
        elif idstr == "timer":
            if "qemu_icount" in values:
                # The clock is that of the instructions, whose number of ns is not in the stream.
                self._refuse("icount", values["qemu_icount"])
            state.mtime = (values["cpu_clock_offset"] // _NS_PER_TICK + self._delta) & _NEVER
        elif idstr == "riscv_mtimer":
            self._delta = values.get("time_delta", 0)
            state.mtime = (state.mtime + self._delta) & _NEVER
            for h, compare in zip(state.harts, _listed(values["timecmp"]), strict=True):
                h.mtimecmp = compare
        elif idstr == "globalstate":
            text = values["runstate"].partition(b"\0")[0].decode("latin-1")
            if text not in _RUNSTATES:
                raise ValueError(f"no run state {text!r}")
            state.runstate = text
        elif values["more"]:
            raise ValueError("slirp has connections")
        self._losses.settle()

    def _refuse(self, name: str, value: object, group: str = "") -> None:
        self._losses.lose(name, value, "which a hart here has not", group)

    def _cpu(self, version: int, values: dict[str, Any], hart: HartState) -> None:
        release, known = next(
            (r, known["cpu"])
            for r, known in self.layouts.items()
            if known["cpu"]["version"] == version
        )
        self.release = release

        misa = values.get("env.misa")
        mxl = values["env.misa_mxl"] if misa is None else misa >> 62
        if mxl != _MXL:
            raise RefusedError("device.riscv-cpu.misa-mxl", f"misa.MXL is {mxl}")
        csrs: dict[str, int] = {}
        csrs["misa"] = _MXL << 62 | (values["env.misa_ext"] if misa is None else misa & 0xFFFFFFFF)
        names = {name: f"env.{name}" for name in _CSRS}
        if release == "5.2":
            names |= _FIELDS_5_2
        for name, field in names.items():
            csrs[name] = values.get(field, 0)

        mstatus = values["env.mstatus"] & ~_SD
        for name, bits in _MSTATUS_OTHER.items():
            if mstatus & bits:
                self._refuse(name, (mstatus & bits) // (bits & -bits))
                mstatus &= ~bits
        if release != "5.2" and mstatus & _XL != _XL_64:
            self._refuse("mstatus.UXL", mstatus >> 32 & 3)
        csrs["mstatus"] = mstatus & ~_XL | _XL_64 | (_SD if mstatus & _FS == _FS else 0)
        csrs["mip"] = values["env.mip"]
        csrs["mideleg"] = values["env.mideleg"] & ~_VS_INTERRUPTS
        csrs["fcsr"] = values["env.frm"] << 5
        # Before Svadu, and on a CPU without the register, page table walks set the bits.
        csrs["menvcfg"] = values.get("env.menvcfg", _ADUE)
        if release == "7.2":
            csrs["menvcfg"] |= _ADUE
        for i, name in _COUNTERS.items():
            if "env.pmu_ctrs" in values:
                csrs[name] = dict(values["env.pmu_ctrs"][i]["fields"])["mhpmcounter_val"]
        for i, name in _EVENTS.items():
            csrs[name] = values.get("env.mhpmevent_val", [0] * 32)[i]

        entries = [_values(entry) for entry in values.get("env.pmp_state.pmp", ())]
        blank = [0] * (PMP_ENTRIES - len(entries))
        hart.pmpaddr = [entry["addr_reg"] for entry in entries] + blank
        hart.pmpcfg = [entry["cfg_reg"] for entry in entries] + blank
        for name, value in csrs.items():
            if value and name in self._drop:
                self._refuse(name, value)
        hart.csrs = {n: value for n, value in csrs.items() if value and n not in self._drop}
        hart.x = list(values["env.gpr"])
        hart.f = list(values["env.fpr"])
        hart.pc = values["env.pc"]
        hart.privilege = values["env.priv"]
        hart.reserved = values["env.load_res"]
        hart.reserved_value = values["env.load_val"]
        for name, right in (
            ("mhartid", (hart.hart_id,)),
            ("priv", _PRIVILEGES),
            ("frm", range(8)),
        ):
            if values[f"env.{name}"] not in right:
                raise ValueError(f"{name} is {values[f'env.{name}']}")
        hart.mtimecmp = values.get("env.timecmp", hart.mtimecmp)
        if hart.hart_id == 0:
            self.state.tohost = values.get("env.mtohost", 0)
            self.state.fromhost = values.get("env.mfromhost", 0)

        taken = _TAKEN | _NOT_READ | {f"env.{name}" for name in csrs} | set(names.values())
        for group, other in _fields(known):
            name = other["name"]
            if name not in taken and name in values and values[name] != _reset(release, other):
                plain = name.removeprefix("env.")
                self._refuse(plain, values[name], group.removeprefix("cpu/"))
