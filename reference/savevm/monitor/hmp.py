"""The human monitor: commands of words, and answers for people."""

import asyncio
import os
import re
import shlex
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import savevm
from savevm.machine.clint import CLINT_BASE, CLINT_SIZE
from savevm.machine.htif import HTIF_SIZE
from savevm.machine.state import HartState
from savevm.migration.settings import PARAMETERS, SettingsError
from savevm.monitor import snapshots
from savevm.monitor.lines import Port
from savevm.monitor.qmp import VERSION, CommandError, describe

if TYPE_CHECKING:
    from savevm.monitor.emulator import Emulator

__all__ = ["Human", "Monitor", "parse_size"]

PROMPT: Final = "(qemu) "
# Bytes of a line, and lines that can be had again.
LINE_MAX: Final = 4095
HISTORY_MAX: Final = 64
# Bytes that one dump of memory shows.
DUMP_MAX: Final = 1 << 16
# Bytes of commands that wait for those before them.
WAITING_MAX: Final = 1 << 16

_SUFFIXES: Final = "bkmgtpe"


class UsageError(Exception):
    """A command was not written as it must be."""


Function = Callable[["Human", list[str]], "str | Awaitable[str | None] | None"]


@dataclass(frozen=True, slots=True)
class _Command:
    function: Function
    parameters: str
    summary: str


_COMMANDS: Final[dict[str, _Command]] = {}
_INFO: Final[dict[str, _Command]] = {}


def _command(names: str, parameters: str, summary: str) -> Callable[[Function], Function]:
    """Makes a function a command of these names (separated by "|")."""

    def register(function: Function) -> Function:
        table, plain = (
            (_INFO, names.removeprefix("info "))
            if names.startswith("info ")
            else (_COMMANDS, names)
        )
        table[plain] = _Command(function, parameters, summary)
        return function

    return register


def _find(table: dict[str, _Command], word: str) -> tuple[str, _Command] | None:
    return next(((n, c) for n, c in table.items() if word in n.split("|")), None)


class Human:
    """Carries out commands: ``fds`` are the descriptors that they can name, ``hart`` is the one they
    look at."""

    def __init__(self, emulator: "Emulator", fds: dict[str, int], *, hart: int = 0) -> None:
        self.emulator: Final = emulator
        self.fds: Final = fds
        self.hart = hart
        self.detached = False

    async def execute(self, line: str, *, detached: bool = False) -> str:
        """What is said to ``line``, whole lines or nothing; ``detached``: wait for no migration."""
        self.detached = detached
        name = ""
        try:
            if len(line) > LINE_MAX:
                raise UsageError(f"a line of more than {LINE_MAX} characters")
            words = _words(line)
            if not words:
                return ""
            name, found, rest = _look_up(words)
            answer = found.function(self, rest)
            if not isinstance(answer, str | None):
                answer = await answer
            return answer or ""
        except UsageError as error:
            return f'{error}\nTry "help {name}" for more information\n' if name else f"{error}\n"
        except (CommandError, SettingsError) as error:
            return f"Error: {error}\n"
        except (OSError, ValueError) as error:
            return f"Error: {describe(error)}\n"

    def state(self) -> HartState:
        """Of the hart that is looked at."""
        return self.emulator.hart(self.hart)


def _words(line: str) -> list[str]:
    """Words, of which those in double quotes may have spaces."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    lexer.quotes = '"'
    try:
        return list(lexer)
    except ValueError:
        raise UsageError("unterminated string") from None


def _look_up(words: list[str]) -> tuple[str, _Command, list[str]]:
    word, rest = words[0], words[1:]
    # The format may stand right behind the name.
    if "/" in word:
        word, _, form = word.partition("/")
        rest = [f"/{form}", *rest]
    if word == "info" and rest:
        found = _find(_INFO, rest[0])
        if found is None:
            raise UsageError(f"unknown command: 'info {rest[0]}'")
        return f"info {rest[0]}", found[1], rest[1:]
    found = _find(_COMMANDS, word)
    if found is None:
        raise UsageError(f"unknown command: '{word}'")
    return word, found[1], rest


def _arguments(
    words: list[str], name: str, wanted: int, optional: int = 0, flags: str = ""
) -> tuple[set[str], list[str]]:
    """The flags and the arguments; raises ``UsageError`` unless there are as many as wanted."""
    given = set()
    while words and re.fullmatch(f"-[{flags}-]", words[0]) and words[0][1] in flags:
        given.add(words[0][1])
        words = words[1:]
    if len(words) < wanted:
        raise UsageError(f"{name}: string expected")
    if len(words) > wanted + optional:
        raise UsageError(f"{name}: extraneous characters at the end of line")
    return given, words


# The machine


@_command("help|?", "[cmd]", "show the help")
def _help(human: Human, words: list[str]) -> str:
    if not words:
        return _listed(_COMMANDS, "")
    if words[0] == "info":
        found = _find(_INFO, words[1]) if len(words) > 1 else None
        return _listed(_INFO if found is None else {found[0]: found[1]}, "info ")
    found = _find(_COMMANDS, words[0])
    return _listed({found[0]: found[1]}, "") if found else f"unknown command: '{words[0]}'\n"


def _listed(table: dict[str, _Command], before: str) -> str:
    lines = []
    for name in sorted(table):
        known = table[name]
        lines.append(f"{before}{name} {known.parameters} -- {known.summary}\n")
    return "".join(lines)


@_command("info", "[subcommand]", "show various information about the system state")
def _info(human: Human, words: list[str]) -> str:
    return _listed(_INFO, "info ")


@_command("stop|s", "", "stop emulation")
def _stop(human: Human, words: list[str]) -> None:
    _arguments(words, "stop", 0)
    human.emulator.stop()


@_command("cont|c", "", "resume emulation")
def _cont(human: Human, words: list[str]) -> None:
    _arguments(words, "cont", 0)
    human.emulator.cont()


@_command("quit|q", "", "quit the emulator")
def _quit(human: Human, words: list[str]) -> None:
    _arguments(words, "quit", 0)
    human.emulator.end("host-qmp-quit")


@_command("system_reset", "", "reset the system")
def _reset(human: Human, words: list[str]) -> None:
    _arguments(words, "system_reset", 0)
    human.emulator.reset()


@_command("system_powerdown", "", "send system power down event")
def _power_down(human: Human, words: list[str]) -> None:
    _arguments(words, "system_powerdown", 0)
    human.emulator.power_down()


@_command("cpu", "index", "set the default CPU")
def _cpu(human: Human, words: list[str]) -> str | None:
    _, (index,) = _arguments(words, "cpu", 1)
    number = _number(human, index)
    if not 0 <= number < len(human.emulator.board.harts):
        return "invalid CPU index\n"
    human.hart = number
    return None


@_command("info version", "", "show the version")
def _info_version(human: Human, words: list[str]) -> str:
    qemu: Any = VERSION["qemu"]
    return f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}{VERSION['package']}\n"


@_command("info name", "", "show the machine's name")
def _info_name(human: Human, words: list[str]) -> str:
    return f"{human.emulator.name}\n" if human.emulator.name else ""


@_command("info uuid", "", "show the machine's UUID")
def _info_uuid(human: Human, words: list[str]) -> str:
    return f"{human.emulator.uuid}\n"


@_command("info status", "", "show whether the machine runs")
def _info_status(human: Human, words: list[str]) -> str:
    board = human.emulator.board
    if board.running:
        return "VM status: running\n"
    detail = f" ({board.runstate})" if board.runstate != "paused" else ""
    return f"VM status: paused{detail}\n"


@_command("info cpus", "", "show each CPU")
def _info_cpus(human: Human, words: list[str]) -> str:
    return "".join(
        f"{'*' if index == human.hart else ' '} CPU #{index}: thread_id={os.getpid()} model=max\n"
        for index in range(len(human.emulator.board.harts))
    )


@_command("info memory_size_summary", "", "show the size of RAM in bytes")
def _info_memory_size(human: Human, words: list[str]) -> str:
    return f"base memory: {human.emulator.board.ram.used_length}\n"


@_command("info chardev", "", "show the character devices")
def _info_chardev(human: Human, words: list[str]) -> str:
    return "".join(
        f"{backend.label}: filename={backend.filename}\n" for backend in human.emulator.backends
    )


@_command("info block", "", "show the drives")
def _info_block(human: Human, words: list[str]) -> str:
    return "".join(f"{drive.id}: {drive.path} (qcow2)\n" for drive in human.emulator.drives)


@_command("info mtree", "", "show what is at which physical address")
def _info_mtree(human: Human, words: list[str]) -> str:
    board = human.emulator.board
    regions = [
        (int(board.mrom.base), board.mrom.used_length, 0, "rom", board.mrom.name),
        (board.htif_base, HTIF_SIZE, 1, "i/o", "riscv.htif.uart"),
        (CLINT_BASE, CLINT_SIZE, 0, "i/o", "riscv.sifive.clint"),
        (int(board.ram.base), board.ram.used_length, 0, "ram", board.ram.name),
    ]
    lines = ["address-space: memory", "  0000000000000000-ffffffffffffffff (prio 0, i/o): system"]
    for start, size, priority, kind, name in sorted(regions):
        lines.append(f"    {start:016x}-{start + size - 1:016x} (prio {priority}, {kind}): {name}")
    return "\n".join(lines) + "\n\n"


_ABI: Final = [
    "zero",
    "ra",
    "sp",
    "gp",
    "tp",
    "t0",
    "t1",
    "t2",
    "s0",
    "s1",
    "a0",
    "a1",
    "a2",
    "a3",
    "a4",
    "a5",
    "a6",
    "a7",
    "s2",
    "s3",
    "s4",
    "s5",
    "s6",
    "s7",
    "s8",
    "s9",
    "s10",
    "s11",
    "t3",
    "t4",
    "t5",
    "t6",
]
_FLOAT_ABI: Final = [
    "ft0",
    "ft1",
    "ft2",
    "ft3",
    "ft4",
    "ft5",
    "ft6",
    "ft7",
    "fs0",
    "fs1",
    "fa0",
    "fa1",
    "fa2",
    "fa3",
    "fa4",
    "fa5",
    "fa6",
    "fa7",
    "fs2",
    "fs3",
    "fs4",
    "fs5",
    "fs6",
    "fs7",
    "fs8",
    "fs9",
    "fs10",
    "fs11",
    "ft8",
    "ft9",
    "ft10",
    "ft11",
]
_CSRS: Final = [
    "mstatus",
    "mip",
    "mie",
    "mideleg",
    "medeleg",
    "mtvec",
    "stvec",
    "mepc",
    "sepc",
    "mcause",
    "scause",
    "mtval",
    "stval",
    "mscratch",
    "sscratch",
    "satp",
]


@_command("info registers", "[-a]", "show the registers of a CPU (-a: of all)")
def _info_registers(human: Human, words: list[str]) -> str:
    given, _ = _arguments(words, "registers", 0, flags="a")
    every = range(len(human.emulator.board.harts)) if given else [human.hart]
    return "".join(_registers(index, human.emulator.hart(index)) for index in every)


def _registers(index: int, hart: HartState) -> str:
    lines = [
        "",
        f"CPU#{index}",
        f" {'pc':<8} {hart.pc:016x}",
        f" {'mhartid':<8} {hart.hart_id:016x}",
    ]
    lines += [f" {name:<8} {hart.csrs.get(name, 0):016x}" for name in _CSRS]
    lines += _rows([(f"x{i}/{name}", hart.x[i]) for i, name in enumerate(_ABI)])
    lines.append(f" {'fcsr':<8} {hart.csrs.get('fcsr', 0):016x}")
    lines += _rows([(f"f{i}/{name}", hart.f[i]) for i, name in enumerate(_FLOAT_ABI)])
    return "\n".join(lines) + "\n"


def _rows(registers: list[tuple[str, int]]) -> list[str]:
    cells = [f"{name:<8} {value:016x}" for name, value in registers]
    return [" " + " ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]


# Memory

_TOKEN: Final = re.compile(
    r"\s*(?:(0[xX][0-9a-fA-F]+|[0-9]+)|\$([A-Za-z0-9_]+)|(<<|>>|[-+*/%&|^~()]))"
)
_LEVELS: Final = (("+", "-", "&", "|", "^"), ("*", "/", "%"))


def _number(human: Human, text: str) -> int:
    """The value of an expression of numbers, registers and QEMU's operators, of 64 bits."""
    tokens: list[str | int] = []
    position = 0
    while position < len(text.rstrip()):
        found = _TOKEN.match(text, position)
        if found is None:
            raise UsageError(f"invalid char '{text[position:].lstrip()[0]}' in expression")
        position = found.end()
        if found[1]:
            # A leading 0 is octal, as in C.
            octal = found[1][:1] == "0" and found[1].isdigit() and len(found[1]) > 1
            try:
                tokens.append(int(found[1], 8 if octal else 0))
            except ValueError:
                raise UsageError(f"invalid char in expression {found[1][:20]}") from None
        elif found[2]:
            tokens.append(_register(human.state(), found[2]))
        else:
            tokens.append(found[3])
    tokens.reverse()
    value = _sum(tokens, 0, 0)
    if tokens:
        raise UsageError("extraneous characters at the end of line")
    return value & (1 << 64) - 1


def _register(hart: HartState, name: str) -> int:
    if name == "pc":
        return hart.pc
    if name in _ABI:
        return hart.x[_ABI.index(name)]
    if name in hart.csrs:
        return hart.csrs[name]
    if (found := re.fullmatch(r"x(\d{1,2})", name)) and int(found[1]) < 32:
        return hart.x[int(found[1])]
    raise UsageError("unknown register")


def _sum(tokens: list[str | int], level: int, depth: int) -> int:
    """What the expression on top of ``tokens`` gives, of operators of ``level`` and above."""
    if level == len(_LEVELS):
        return _unary(tokens, depth)
    value = _sum(tokens, level + 1, depth)
    while tokens and tokens[-1] in _LEVELS[level]:
        operator = tokens.pop()
        other = _sum(tokens, level + 1, depth)
        if operator in ("/", "%") and not other:
            raise UsageError("division by zero")
        value = {
            "+": value + other,
            "-": value - other,
            "&": value & other,
            "|": value | other,
            "^": value ^ other,
            "*": value * other,
            "/": value // (other or 1),
            "%": value % (other or 1),
        }[str(operator)] & (1 << 64) - 1
    return value


def _unary(tokens: list[str | int], depth: int) -> int:
    if not tokens:
        raise UsageError("unexpected end of expression")
    if depth > 100:
        raise UsageError("the expression is nested too deep")
    token = tokens.pop()
    if isinstance(token, int):
        return token
    if token == "(":
        value = _sum(tokens, 0, depth + 1)
        if not tokens or tokens.pop() != ")":
            raise UsageError("')' expected")
        return value
    if token in ("+", "-", "~"):
        value = _unary(tokens, depth + 1)
        return {"+": value, "-": -value, "~": ~value}[token]
    raise UsageError(f"invalid char '{token}' in expression")


@_command("x", "/fmt addr", "virtual memory dump starting at 'addr'")
def _dump_virtual(human: Human, words: list[str]) -> str:
    return _dump(human, words, "x", physical=False)


@_command("xp", "/fmt addr", "physical memory dump starting at 'addr'")
def _dump_physical(human: Human, words: list[str]) -> str:
    return _dump(human, words, "xp", physical=True)


def _dump(human: Human, words: list[str], name: str, *, physical: bool) -> str:
    count, form, size = 1, "x", 4
    if words and words[0].startswith("/"):
        found = re.fullmatch(r"/(-?\d{0,9})([a-z]*)", words[0])
        if found is None or re.sub("[xduocbhwg]", "", found[2]):
            raise UsageError(f"invalid char in format: '{words[0]}'")
        count = int(found[1] or 1)
        for letter in found[2]:
            if letter in "bhwg":
                size = 1 << "bhwg".index(letter)
            else:
                form = letter
        if form == "c":
            size = 1
        words = words[1:]
    if not words:
        raise UsageError("unexpected end of expression")
    address = _number(human, " ".join(words))
    if not 0 <= count * size <= DUMP_MAX:
        raise UsageError(f"no more than {DUMP_MAX} bytes at once")
    emulator, hart = human.emulator, human.state()
    width = -(-size * 8 // 3) if form == "o" else -(-size * 80 // 33)
    lines = []
    # As many in a line as QEMU has.
    step = 8 if form == "c" else 16
    left = count * size
    while left > 0:
        piece = min(left, step)
        data = (
            emulator.read_physical(address, piece)
            if physical
            else emulator.read_virtual(hart, address, piece)
        )
        if data is None:
            lines.append(f"{address:016x}: Cannot access memory\n")
            break
        cells = [_cell(data[i : i + size], form, width) for i in range(0, piece, size)]
        lines.append(f"{address:016x}: {' '.join(cells)}\n")
        address += piece
        left -= piece
    return "".join(lines)


def _cell(data: bytes, form: str, width: int) -> str:
    value = int.from_bytes(data, "little", signed=form == "d" and len(data) == 8)
    if form == "c":
        return f"'{chr(value)}'" if 32 <= value < 127 and value != 39 else f"'\\x{value:02x}'"
    if form == "x":
        return f"0x{value:0{2 * len(data)}x}"
    octal = f"0{value:o}" if value else "0"
    return octal.rjust(width) if form == "o" else f"{value:{width}d}"


@_command("print|p", "/fmt expr", "print expression value (use $reg for CPU register access)")
def _print(human: Human, words: list[str]) -> str:
    form = "x"
    if words and words[0].startswith("/"):
        form, words = words[0][1:], words[1:]
    value = _number(human, " ".join(words))
    if form in ("d", "u"):
        return f"{value - (value >> 63 << 64) if form == 'd' else value}\n"
    return f"{value:#o}\n" if form == "o" else f"{value:#x}\n"


# Snapshots


@_command("savevm", "tag", "save a VM snapshot; without a tag, one is made up")
def _savevm(human: Human, words: list[str]) -> None:
    _, names = _arguments(words, "savevm", 0, 1)
    snapshots.take(human.emulator, names[0] if names else None)


@_command("loadvm", "tag", "restore a VM snapshot from its tag")
def _loadvm(human: Human, words: list[str]) -> None:
    _, (tag,) = _arguments(words, "loadvm", 1)
    snapshots.restore(human.emulator, tag)


@_command("delvm", "tag", "delete a VM snapshot from its tag")
def _delvm(human: Human, words: list[str]) -> None:
    _, (tag,) = _arguments(words, "delvm", 1)
    snapshots.delete(human.emulator, tag)


@_command("info snapshots", "", "show the currently saved VM snapshots")
def _info_snapshots(human: Human, words: list[str]) -> str:
    _arguments(words, "snapshots", 0)
    return snapshots.table(snapshots.listed(human.emulator))


# Migration


@_command("migrate", "[-d] uri", "migrate to URI (using -d to not wait for completion)")
async def _migrate(human: Human, words: list[str]) -> str | None:
    given, (uri,) = _arguments(words, "migrate", 1, flags="d")
    task = human.emulator.migrate(uri, human.fds)
    if given or human.detached:
        return None
    await asyncio.wait({task})
    outgoing = human.emulator.outgoing
    assert outgoing is not None
    return f"Error: {outgoing.error}\n" if outgoing.status == "failed" else None


@_command("migrate_incoming", "uri", "wait at URI for the machine that migrates (-incoming defer)")
def _migrate_incoming(human: Human, words: list[str]) -> None:
    _, (uri,) = _arguments(words, "migrate_incoming", 1)
    human.emulator.migrate_incoming(uri, human.fds)


@_command("migrate_cancel", "", "cancel the current VM migration")
def _migrate_cancel(human: Human, words: list[str]) -> None:
    _arguments(words, "migrate_cancel", 0)
    human.emulator.migrate_cancel()


@_command("migrate_continue", "state", "continue a migration that waits in this state")
def _migrate_continue(human: Human, words: list[str]) -> None:
    _, (state,) = _arguments(words, "migrate_continue", 1)
    human.emulator.migrate_continue(state)


@_command("migrate_set_capability", "capability state", "switch a capability on or off")
def _set_capability(human: Human, words: list[str]) -> None:
    _, (name, state) = _arguments(words, "migrate_set_capability", 2)
    if name not in human.emulator.settings.capabilities:
        raise CommandError(f"invalid parameter value: {name}")
    if state not in ("on", "off"):
        raise UsageError("Expected 'on' or 'off'")
    human.emulator.set_capabilities({name: state == "on"})


@_command("migrate_set_parameter", "parameter value", "set a parameter of migration")
def _set_parameter(human: Human, words: list[str]) -> None:
    _, (name, text) = _arguments(words, "migrate_set_parameter", 2)
    if name not in PARAMETERS:
        raise CommandError(f"invalid parameter value: {name}")
    human.emulator.settings.set_parameters({name: parse_parameter(name, text)})


def parse_parameter(name: str, text: str) -> object:
    """The value that ``text`` is for a known parameter; raises ``SettingsError``."""
    default = PARAMETERS[name].default
    if isinstance(default, bool):
        if text not in ("on", "off"):
            raise SettingsError(f"Parameter '{name}' expects 'on' or 'off'")
        return text == "on"
    if isinstance(default, int):
        # A bandwidth without a unit is in MiB.
        unit = "m" if name in ("max-bandwidth", "avail-switchover-bandwidth") else "b"
        value = parse_size(text, unit)
        if value is None:
            raise SettingsError(
                f"Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, "
                "M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
            )
        return value
    return text.split() if isinstance(default, list) else text


def parse_size(text: str, unit: str = "b") -> int | None:
    """Bytes, of a number with one of QEMU's suffixes, else in ``unit``; None where it is none."""
    found = re.fullmatch(
        r"(0x[0-9a-f]+)|([0-9]{1,20})(?:\.([0-9]{1,20}))?([bkmgtpe])?",
        text,
        re.ASCII | re.IGNORECASE,
    )
    if found is None:
        return None
    if found[1]:
        value = int(found[1], 16)
    else:
        shift = 10 * _SUFFIXES.index((found[4] or unit).lower())
        fraction = found[3] or ""
        value = (int(found[2] + fraction) << shift) // 10 ** len(fraction)
    return value if value < 1 << 64 else None


@_command("info migrate", "[-a]", "show migration status")
def _info_migrate(human: Human, words: list[str]) -> str:
    told = human.emulator.migration()
    if not told:
        return ""
    failed = f" ({told['error-desc']})" if "error-desc" in told else ""
    lines = [f"Status: \t\t{told['status']}{failed}"]
    times = {
        "total-time": "total time",
        "expected-downtime": "expected downtime",
        "downtime": "downtime",
        "setup-time": "setup",
    }
    lines += [f"{words}: {told[key]} ms" for key, words in times.items() if key in told]
    if ram := told.get("ram"):
        kilobytes = {
            "transferred": "transferred ram",
            "remaining": "remaining ram",
            "total": "total ram",
        }
        lines += [f"{words}: {ram[key] >> 10} kbytes" for key, words in kilobytes.items()]
        lines.append(f"throughput: {ram['mbps']:.2f} mbps")
        lines += [f"{key}: {ram[key]} pages" for key in ("duplicate", "normal")]
        lines.append(f"normal bytes: {ram['normal-bytes'] >> 10} kbytes")
        lines.append(f"dirty sync count: {ram['dirty-sync-count']}")
        lines.append(f"page size: {ram['page-size'] >> 10} kbytes")
        lines.append(f"pages-per-second: {ram['pages-per-second']}")
        if told["status"] != "completed":
            lines.append(f"dirty pages rate: {ram['dirty-pages-rate']} pages")
    for address in told.get("socket-address", ()):
        where = address.get("path") or f"{address['host']}:{address['port']}"
        lines.append(f"socket address: {address['type']}:{where}")
    return "\n".join(lines) + "\n"


@_command("info migrate_parameters", "", "show current migration parameters")
def _info_parameters(human: Human, words: list[str]) -> str:
    lines = []
    for name, value in human.emulator.settings.parameters.items():
        known = PARAMETERS[name]
        if not known.shown:
            continue
        if isinstance(value, bool):
            shown = "on" if value else "off"
        elif isinstance(value, list):
            shown = " ".join(value)
        else:
            shown = f"'{value}'" if isinstance(value, str) and not known.choices else str(value)
        lines.append(f"{name}: {shown}{f' {known.unit}' if known.unit else ''}".rstrip() + "\n")
    return "".join(lines)


@_command("info migrate_capabilities", "", "show current migration capabilities")
def _info_capabilities(human: Human, words: list[str]) -> str:
    capabilities = human.emulator.settings.capabilities
    return "".join(f"{name}: {'on' if state else 'off'}\n" for name, state in capabilities.items())


# The terminal


class Monitor:
    """The front end that gives every connection a prompt, and a line that can be edited."""

    impatient = True

    def __init__(self, emulator: "Emulator") -> None:
        self._emulator: Final = emulator
        self._terminals: dict[Port, _Terminal] = {}

    def opened(self, port: Port) -> None:
        terminal = _Terminal(Human(self._emulator, {}), port)
        self._terminals[port] = terminal
        terminal.greet()

    def focused(self, port: Port) -> None:
        """It is looked at again."""
        self._terminals[port].prompt()

    def received(self, port: Port, data: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        self._terminals[port].typed(data)

    def ended(self, port: Port) -> None:
        self._terminals[port].ended()

    def closed(self, port: Port) -> None:
        self._terminals.pop(port).closed()


class _Terminal:
    """One who types: a line that is echoed, with the keys that shells have for it."""

    def __init__(self, human: Human, port: Port) -> None:
        self._human: Final = human
        self._port: Final = port
        self._line = ""
        self._escape = ""
        self._history: list[str] = []
        self._at = 0
        self._waiting: deque[int] = deque()
        self._busy: asyncio.Task[None] | None = None
        self._last = False
        self._gone = False

    def greet(self) -> None:
        self._port.write(
            f"savevm {savevm.__version__} monitor - type 'help' for more information\r\n".encode()
        )
        self.prompt()

    def prompt(self) -> None:
        """Show the prompt and what has been typed."""
        self._port.write((PROMPT + self._line).encode())

    def typed(self, data: bytes) -> None:
        """Keys; those behind a command wait for it."""
        self._waiting.extend(data)
        if self._busy is None:
            self._take()
        if len(self._waiting) > WAITING_MAX:
            self._port.pause()

    def _take(self) -> None:
        while self._waiting and self._busy is None:
            self._key(self._waiting.popleft())

    def _key(self, byte: int) -> None:
        character = chr(byte)
        if self._escape:
            self._escape += character
            if len(self._escape) == 2 and character in "[O":
                return
            if character.isalpha() or character == "~" or len(self._escape) > 8:
                self._arrow(self._escape[-1])
                self._escape = ""
        elif character == "\x1b":
            self._escape = character
        elif character in "\r\n":
            self._port.write(b"\r\n")
            line, self._line = self._line, ""
            if line and (not self._history or self._history[-1] != line):
                self._history = [*self._history[1 - HISTORY_MAX :], line]
            self._at = len(self._history)
            self._busy = asyncio.create_task(self._execute(line))
        elif character in "\x08\x7f":
            if self._line:
                self._line = self._line[:-1]
                self._port.write(b"\x08 \x08")
        elif character in "\x15\x03":
            self._replace("")
        elif character == "\x10":
            self._arrow("A")
        elif character == "\x0e":
            self._arrow("B")
        elif 32 <= byte < 127 and len(self._line) < LINE_MAX:
            self._line += character
            self._port.write(character.encode())

    def _arrow(self, letter: str) -> None:
        step = {"A": -1, "B": 1}.get(letter, 0)
        at = self._at + step
        if step and 0 <= at <= len(self._history):
            self._at = at
            self._replace(self._history[at] if at < len(self._history) else "")

    def _replace(self, line: str) -> None:
        """Another line in the place of this one."""
        self._port.write(b"\x08 \x08" * len(self._line) + line.encode())
        self._line = line

    async def _execute(self, line: str) -> None:
        await self._human.emulator.ready.wait()
        said = await self._human.execute(line)
        # Others have their turn between two commands.
        await asyncio.sleep(0)
        self._busy = None
        if self._gone:
            return
        self._port.write(said.replace("\n", "\r\n").encode(errors="backslashreplace"))
        self.prompt()
        self._port.resume()
        self._take()
        self._part()

    def ended(self) -> None:
        """No more is typed."""
        self._last = True
        self._part()

    def _part(self) -> None:
        if self._last and self._busy is None and not self._waiting:
            self._port.close()

    def closed(self) -> None:
        """Nobody is there any more."""
        self._gone = True
        self._waiting.clear()
        for fd in self._human.fds.values():
            os.close(fd)
