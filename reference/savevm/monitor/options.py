"""QEMU's options, as far as they mean something to this machine."""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from savevm.migration.settings import CAPABILITIES, PARAMETERS, Settings, SettingsError
from savevm.monitor.hmp import parse_parameter, parse_size
from savevm.monitor.snapshots import Drive
from savevm.transport import Credentials

__all__ = [
    "Chardev",
    "LoaderImage",
    "MonitorOption",
    "OptionError",
    "Options",
    "help_text",
    "parse",
]

MEMORY: Final = 128 << 20
_HARTS_MAX: Final = 8
# A bit of time per instruction that is neither the fastest nor the slowest.
_SHIFT_AUTO: Final = 3


class OptionError(Exception):
    """A command line that cannot be."""


@dataclass
class Chardev:
    """A character device to be made: its ``backend`` and the options of it."""

    id: str
    backend: str
    options: dict[str, str]
    option: str
    mux: bool = False


@dataclass
class MonitorOption:
    """A monitor at a character device; ``mode`` is "control" (QMP) or "readline"."""

    chardev: str
    mode: str
    pretty: bool = False
    option: str = ""


@dataclass
class LoaderImage:
    """A file to be put at a physical address."""

    path: str
    address: int
    option: str


@dataclass
class Options:
    """What a command line says."""

    settings: Settings = field(default_factory=Settings)
    memory: int = MEMORY
    harts: int = 1
    features: dict[str, bool] = field(default_factory=dict)
    kernel: str | None = None
    bios: str = "default"
    initrd: str | None = None
    append: str = ""
    images: list[LoaderImage] = field(default_factory=list)
    autostart: bool = True
    incoming: str | None = None
    loadvm: str | None = None
    chardevs: dict[str, Chardev] = field(default_factory=dict)
    monitors: list[MonitorOption] = field(default_factory=list)
    serial: str | None = None  # the id of its character device
    drives: list[Drive] = field(default_factory=list)
    credentials: dict[str, Credentials] = field(default_factory=dict)
    name: str = ""
    uuid: str = "00000000-0000-0000-0000-000000000000"
    shift: int | None = None
    reboots: bool = True
    shuts_down: bool = True
    pidfile: str | None = None
    # Answered instead of a machine: "help" or "version".
    question: str | None = None
    machine: str | None = None
    defaults: bool = True
    nographic: bool = False
    display: str | None = None
    serial_given: bool = False
    monitor_given: bool = False


Function = Callable[[Options, str], None]


@dataclass(frozen=True)
class _Option:
    function: Function
    argument: str
    summary: str
    names: tuple[str, ...]


_OPTIONS: Final[dict[str, _Option]] = {}
_LISTED: Final[list[_Option]] = []


def _option(*names: str, argument: str = "", summary: str = "") -> Callable[[Function], Function]:
    """Makes a function the option of these names, with an ``argument`` unless that is empty."""

    def register(function: Function) -> Function:
        option = _Option(function, argument, summary, names)
        _LISTED.append(option)
        _OPTIONS.update(dict.fromkeys(names, option))
        return function

    return register


def split(text: str, implied: str = "") -> dict[str, str]:
    """Options as QEMU writes them: ``key=value`` with commas between, a comma in a value doubled.

    What has no "=" is the value of ``implied`` if it comes first, else ``on`` (``off`` with "no"
    before it, for the few names for which QEMU has that).  Raises ``OptionError``.
    """
    found: dict[str, str] = {}
    # No option has a NUL: it comes from an array of C strings.
    for index, piece in enumerate(text.replace(",,", "\0").split(",") if text else []):
        key, equals, value = piece.partition("=")
        if not equals:
            if index == 0 and implied:
                key, value = implied, piece
            elif key in ("nowait", "noserver", "nodelay"):
                key, value = (key, "on") if key == "nodelay" else (key[2:], "off")
            else:
                value = "on"
        if not key:
            raise OptionError(f"Invalid parameter '{piece}'")
        found[key] = value.replace("\0", ",")
    return found


def switch(name: str, text: str) -> bool:
    """Whether an option is on; raises ``OptionError``."""
    if text in ("on", "yes", "true", "y"):
        return True
    if text in ("off", "no", "false", "n"):
        return False
    raise OptionError(f"Parameter '{name}' expects 'on' or 'off'")


def _known(options: dict[str, str], names: Iterable[str]) -> dict[str, str]:
    """``options``, unless there are others than ``names``."""
    for name in options:
        if name not in names:
            raise OptionError(f"Invalid parameter '{name}'")
    return options


def _integer(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise OptionError(f"Parameter '{name}' expects a number")
    return int(text)


# The machine


# Properties of QEMU's that change nothing here, with the values that are accepted.
_MACHINE_IGNORED: Final = {
    "accel": ("tcg",),
    "usb": ("off",),
    "graphics": ("on", "off"),
    "dump-guest-core": ("on", "off"),
    "mem-merge": ("on", "off"),
    "memory-encryption": (),
}


@_option(
    "M",
    "machine",
    argument="[type=]spike[,prop=value...]",
    summary="""the machine; there is
one.  x-release=5.2|7.2|10.0|11.1 is the QEMU whose layouts a stream is written in (default: that of
the stream that came in, else 11.1), x-drop=NAME[:NAME...] what they may leave out""",
)
def _machine(options: Options, text: str) -> None:
    given = split(text, "type")
    name = given.pop("type", options.machine)
    if name in ("help", "?"):
        options.question = "machines"
        return
    if name is not None and name != "spike":
        raise OptionError(f'unsupported machine type: "{name}"\nUse -machine help to list them')
    options.machine = name
    for key, value in given.items():
        if key in ("x-release", "x-drop"):
            options.settings.set_parameters({key: value})
        elif key not in _MACHINE_IGNORED:
            raise OptionError(f"Property 'spike-machine.{key}' not found")
        elif value not in _MACHINE_IGNORED[key]:
            raise OptionError(f"Property 'spike-machine.{key}' cannot be '{value}' here")


# What a hart can have, and what every one has.
_LETTERS: Final = "imafdcsu"
_SWITCHED: Final = ("sstc", "svadu", "svpbmt")
_ALWAYS: Final = ("i", "zicsr", "zifencei", "counters", "mmu", "pmp", "sv39", "sv48", "sv57")


@_option(
    "cpu",
    argument="rv64|max[,feature=on|off...]",
    summary="""features of the harts: m, a, f, d, c, s, u, sstc, svadu, svpbmt.  What they never have can be
switched off, as for a QEMU""",
)
def _cpu(options: Options, text: str) -> None:
    given = split(text, "model")
    model = given.pop("model", "")
    if model not in ("rv64", "max"):
        raise OptionError(f"unable to find CPU model '{model}'")
    for name, value in given.items():
        known = name.lower().lstrip("+-")
        wanted = name[0] == "+" if name[0] in "+-" else switch(name, value)
        if known in _ALWAYS:
            if not wanted:
                raise OptionError(f"the harts of this machine always have '{known}'")
        elif known in _LETTERS or known in _SWITCHED:
            options.features[known] = wanted
        elif wanted:
            raise OptionError(f"the harts of this machine have no '{name}'")


@_option(
    "m",
    argument="[size=]MEGS[,...]",
    summary="""size of RAM in MiB, or with a suffix (M, G);
128 MiB if not given""",
)
def _memory(options: Options, text: str) -> None:
    given = _known(split(text, "size"), ("size", "slots", "maxmem"))
    size = parse_size(given.get("size", ""), "m")
    if size is None:
        raise OptionError(
            "Parameter 'size' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, "
            "P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
        )
    # QEMU's granularity, and its meaning of 0.
    options.memory = -(-size // 8192) * 8192 or MEMORY


@_option("smp", argument="[cpus=]N[,...]", summary="number of harts, 1 to 8")
def _smp(options: Options, text: str) -> None:
    topology = ("drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads")
    given = _known(split(text, "cpus"), ("cpus", "maxcpus", *topology))
    numbers = {key: _integer(f"smp.{key}", value) for key, value in given.items()}
    if 0 in numbers.values():
        raise OptionError("Invalid CPU topology: CPU topology parameters must be greater than zero")
    product = 1
    for key in topology:
        product *= numbers.get(key, 1)
    options.harts = numbers.get("cpus", numbers.get("maxcpus", product))
    if numbers.get("maxcpus", options.harts) < options.harts:
        raise OptionError(
            f"Invalid CPU topology: maxcpus ({numbers['maxcpus']}) is below cpus ({options.harts})"
        )
    most = numbers.get("maxcpus", options.harts)
    if most % product or (product < most and numbers.keys() >= {"sockets", "cores", "threads"}):
        raise OptionError(
            f"Invalid CPU topology: product of the hierarchy ({product}) must match maxcpus ({most})"
        )
    if options.harts > _HARTS_MAX:
        raise OptionError(
            f"Invalid SMP CPUs {options.harts}. The max CPUs supported by machine 'spike' is "
            f"{_HARTS_MAX}"
        )


@_option("bios", argument="FILE|none|default", summary="firmware; OpenSBI of the system by default")
def _bios(options: Options, text: str) -> None:
    options.bios = text


@_option("kernel", argument="FILE", summary="kernel, ELF or raw")
def _kernel(options: Options, text: str) -> None:
    options.kernel = text


@_option("initrd", argument="FILE", summary="initial RAM disk")
def _initrd(options: Options, text: str) -> None:
    options.initrd = text


@_option("append", argument="TEXT", summary="the kernel's command line")
def _append(options: Options, text: str) -> None:
    options.append = text


@_option(
    "device",
    argument="loader,file=FILE,addr=N",
    summary="""put a file in RAM as it is; there
are no other devices""",
)
def _device(options: Options, text: str) -> None:
    given = split(text, "driver")
    if given.pop("driver", "") != "loader":
        raise OptionError("'loader' is the only device of this machine")
    _known(given, ("file", "addr", "force-raw", "id"))
    address = parse_size(given.get("addr", ""))
    if "file" not in given or address is None:
        raise OptionError("a loader needs 'file' and 'addr'")
    options.images.append(LoaderImage(given["file"], address, f"-device {text}"))


@_option(
    "icount",
    argument="[shift=]N|auto[,...]",
    summary="""time counts instructions, 2**N ns for
each (to the nearest power of two of instructions in 100 ns): a run depends on nothing else""",
)
def _icount(options: Options, text: str) -> None:
    given = _known(split(text, "shift"), ("shift", "align", "sleep"))
    shift = given.get("shift", "auto")
    if shift != "auto" and not (re.fullmatch("[0-9]{1,2}", shift) and int(shift) <= 10):
        raise OptionError("icount: Invalid shift value")
    exponent = _SHIFT_AUTO if shift == "auto" else int(shift)
    options.shift = max(range(8), key=lambda bits: -abs((1 << bits + exponent) - 100))


# How it starts


@_option("S", summary="do not start until told to (cont)")
def _stopped(options: Options, text: str) -> None:
    options.autostart = False


@_option(
    "incoming",
    argument="URI|defer",
    summary="""wait for a machine that migrates here, from
tcp:, unix:, exec:, fd: or file:; defer: migrate-incoming tells""",
)
def _incoming(options: Options, text: str) -> None:
    options.incoming = text


@_option(
    "drive",
    argument="file=X.qcow2[,id=...]",
    summary="""where snapshots are kept; the guest does
not see it""",
)
def _drive(options: Options, text: str) -> None:
    given = _known(
        split(text),
        ("file", "if", "id", "format", "media", "cache", "aio", "discard", "index", "read-only"),
    )
    if "file" not in given:
        raise OptionError("Parameter 'file' is missing")
    if given.get("format", "qcow2") != "qcow2":
        raise OptionError(f"format '{given['format']}' keeps no snapshots: qcow2 is wanted")
    if given.get("if", "none") != "none":
        raise OptionError("machine type does not support if=" + given["if"])
    options.drives.append(Drive(given.get("id", f"none{len(options.drives)}"), given["file"]))


@_option("loadvm", argument="TAG", summary="start from a snapshot")
def _loadvm(options: Options, text: str) -> None:
    options.loadvm = text


@_option(
    "global",
    argument="migration.NAME=VALUE",
    summary="""preset a migration parameter, or a
capability as x-NAME=on|off""",
)
def _global(options: Options, text: str) -> None:
    name, equals, value = text.partition("=")
    driver, _, key = name.partition(".")
    if not equals or not key:
        raise OptionError(f"Invalid parameter '{text}'")
    if driver != "migration":
        raise OptionError(f"there is no '{driver}' on this machine")
    if key in PARAMETERS:
        options.settings.set_parameters({key: parse_parameter(key, value)})
    elif key.removeprefix("x-") in CAPABILITIES:
        options.settings.set_capabilities({key.removeprefix("x-"): switch(key, value)})
    else:
        raise OptionError(f"can't apply global {text}: Property '{name}' not found")


# Whom it talks to


@_option(
    "serial",
    argument="DEV",
    summary="""the guest's console: stdio, mon:stdio (with the monitor,
C-a c switches, C-a x ends), file:PATH, unix:PATH[,server=on[,wait=off]], tcp:HOST:PORT[,...],
chardev:ID, null, none""",
)
def _serial(options: Options, text: str) -> None:
    if options.serial is not None:
        raise OptionError("this machine has one serial device")
    options.serial_given = True
    if text == "none":
        return
    with_monitor = text.startswith("mon:")
    options.serial = _short(options, text.removeprefix("mon:"), "serial0", f"-serial {text}")
    if with_monitor:
        options.chardevs[options.serial].mux = True
        options.chardevs[options.serial].options.setdefault("signal", "off")
        options.monitors.append(MonitorOption(options.serial, "readline"))
        options.monitor_given = True


@_option("monitor", argument="DEV", summary="human monitor, at what -serial takes")
def _monitor(options: Options, text: str) -> None:
    _add_monitor(options, text, "readline", f"-monitor {text}")


@_option("qmp", argument="DEV", summary="QMP, at what -serial takes")
def _qmp(options: Options, text: str) -> None:
    _add_monitor(options, text, "control", f"-qmp {text}")


@_option("qmp-pretty", argument="DEV", summary="QMP in many lines")
def _qmp_pretty(options: Options, text: str) -> None:
    _add_monitor(options, text, "control", f"-qmp-pretty {text}", pretty=True)


def _add_monitor(
    options: Options, text: str, mode: str, option: str, *, pretty: bool = False
) -> None:
    options.monitor_given = True
    if text == "none":
        return
    label = f"compat_monitor{len(options.monitors)}"
    chardev = _short(options, text, label, option)
    options.monitors.append(MonitorOption(chardev, mode, pretty, option))


@_option("mon", argument="[chardev=]ID[,mode=control|readline]", summary="monitor at a -chardev")
def _mon(options: Options, text: str) -> None:
    given = _known(split(text, "chardev"), ("chardev", "mode", "pretty", "id"))
    if "chardev" not in given:
        raise OptionError("Parameter 'chardev' is missing")
    mode = given.get("mode", "readline")
    if mode not in ("control", "readline"):
        raise OptionError(f"Parameter 'mode' does not accept value '{mode}'")
    pretty = switch("pretty", given.get("pretty", "off"))
    options.monitor_given = True
    options.monitors.append(MonitorOption(given["chardev"], mode, pretty, f"-mon {text}"))


_SOCKET: Final = ("server", "wait", "nodelay", "telnet", "websocket", "ipv4", "ipv6", "mux")
_BACKENDS: Final = {
    "null": ("mux",),
    "stdio": ("signal", "mux"),
    "file": ("path", "append", "mux"),
    "socket": ("path", "host", "port", "fd", *_SOCKET),
}


@_option(
    "chardev",
    argument="socket|stdio|file|null,id=ID[,...]",
    summary="""character device for
-mon and -serial: socket with path=, host= and port=, or fd=, server=on, wait=off; file with path=,
append=on; stdio with signal=off; mux=on""",
)
def _chardev(options: Options, text: str) -> None:
    given = split(text, "backend")
    backend = given.pop("backend", "")
    label = given.pop("id", "")
    if not label:
        raise OptionError("chardev: no id specified")
    _add_chardev(options, label, backend, given, f"-chardev {text}")


def _add_chardev(
    options: Options, label: str, backend: str, given: dict[str, str], option: str
) -> None:
    if label in options.chardevs:
        raise OptionError(f"Duplicate ID '{label}' for chardev")
    if backend not in _BACKENDS:
        raise OptionError(f"'{backend}' is not a valid char driver name")
    _known(given, _BACKENDS[backend])
    for name in ("telnet", "websocket"):
        if name in given and switch(name, given.pop(name)):
            raise OptionError(f"{name} is not supported by this machine")
    if backend == "socket" and not given.keys() & {"path", "host", "port", "fd"}:
        raise OptionError("a socket needs 'path', 'host' and 'port', or 'fd'")
    if backend == "file" and "path" not in given:
        raise OptionError("chardev: file: no filename given")
    mux = switch("mux", given.pop("mux", "off"))
    options.chardevs[label] = Chardev(label, backend, given, option, mux)


def _short(options: Options, text: str, label: str, option: str) -> str:
    """The id of the character device that QEMU's older spelling ``text`` means."""
    kind, _, rest = text.partition(":")
    if kind == "chardev":
        return rest
    if text in ("stdio", "null"):
        _add_chardev(options, label, text, {}, option)
    elif kind == "file":
        _add_chardev(options, label, "file", {"path": rest}, option)
    elif kind == "unix":
        _add_chardev(options, label, "socket", split(rest, "path"), option)
    elif kind == "tcp":
        place, comma, more = rest.partition(",")
        found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):([0-9]{1,5})", place)
        if found is None:
            raise OptionError(f"error parsing address '{place}'")
        given = split(more) if comma else {}
        host = found[1] or found[2] or ""
        _add_chardev(options, label, "socket", {"host": host, "port": found[3]} | given, option)
    else:
        raise OptionError(f"'{text}' is not a valid char driver")
    return label


@_option("nographic", summary="console and monitor on the terminal, as -serial mon:stdio")
def _nographic(options: Options, text: str) -> None:
    options.nographic = True


@_option("display", argument="none", summary="accepted: there is no display")
def _display(options: Options, text: str) -> None:
    if text not in ("none", "curses", "nographic") or text == "curses":
        raise OptionError(f"Parameter 'type' does not accept value '{text}'")
    options.display = text


@_option("nodefaults", summary="no console and no monitor unless asked for")
def _nodefaults(options: Options, text: str) -> None:
    options.defaults = False


# What QEMU has and what it says is so here anyway.


def _only(*values: str) -> Function:
    def accept(options: Options, text: str) -> None:
        if text.partition(",")[0] not in values:
            raise OptionError(f"'{text}' is not supported by this machine")

    return accept


_option("nic", argument="none", summary="accepted: there is no network")(_only("none"))
_option("net", argument="none", summary="")(_only("none"))
_option("vga", argument="none", summary="")(_only("none"))
_option("parallel", argument="none", summary="")(_only("none"))
_option("accel", argument="tcg", summary="accepted: there is one way to run")(
    _only("tcg", "accel=tcg")
)


@_option("no-user-config", "only-migratable", "mem-prealloc", summary="accepted")
def _ignored(options: Options, text: str) -> None:
    pass


@_option("msg", "L", "rtc", "sandbox", "overcommit", "audio", argument="...", summary="accepted")
def _ignored_with(options: Options, text: str) -> None:
    pass


@_option(
    "object",
    argument="tls-creds-x509,id=ID,dir=PATH[,...]",
    summary="""credentials for migration
with TLS, which the parameter tls-creds names""",
)
def _object(options: Options, text: str) -> None:
    given = split(text, "qom-type")
    if given.pop("qom-type", "") != "tls-creds-x509":
        raise OptionError("tls-creds-x509 is the only object that this machine has a use for")
    _known(given, ("id", "dir", "endpoint", "verify-peer"))
    if "id" not in given or "dir" not in given:
        raise OptionError(
            "Parameter 'id' is missing" if "id" not in given else "Parameter 'dir' is missing"
        )
    if given["id"] in options.credentials:
        raise OptionError(f"Duplicate ID '{given['id']}' for object")
    verify = switch("verify-peer", given.get("verify-peer", "on"))
    options.credentials[given["id"]] = Credentials(given["dir"], verify_peer=verify)


# The process


@_option("name", argument="[guest=]NAME[,...]", summary="what query-name says")
def _name(options: Options, text: str) -> None:
    given = _known(split(text, "guest"), ("guest", "process", "debug-threads"))
    options.name = given.get("guest", "")


@_option("uuid", argument="UUID", summary="what query-uuid says")
def _uuid(options: Options, text: str) -> None:
    if not re.fullmatch("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise OptionError("failed to parse UUID string: wrong format")
    options.uuid = text.lower()


@_option("no-reboot", summary="end instead of starting anew")
def _no_reboot(options: Options, text: str) -> None:
    options.reboots = False


@_option("no-shutdown", summary="stop instead of ending when the guest powers off")
def _no_shutdown(options: Options, text: str) -> None:
    options.shuts_down = False


@_option("pidfile", argument="FILE", summary="write the process's number there")
def _pidfile(options: Options, text: str) -> None:
    options.pidfile = text


@_option("version", summary="show the version")
def _version(options: Options, text: str) -> None:
    options.question = options.question or "version"


@_option("h", "help", summary="show this help")
def _help(options: Options, text: str) -> None:
    options.question = "help"


def parse(arguments: Sequence[str]) -> Options:
    """What the command line says.  Raises ``OptionError`` that names the option."""
    options = Options()
    left = list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "-":
            raise OptionError(f"{word}: this machine has no disk for an image")
        found = _OPTIONS.get(word[2:] if word.startswith("--") else word[1:])
        if found is None:
            raise OptionError(f"{word}: invalid option")
        text = ""
        if found.argument:
            if not left:
                raise OptionError(f"{word}: requires an argument")
            text = left.pop(0)
        try:
            found.function(options, text)
        except (OptionError, SettingsError) as error:
            raise OptionError(f"{word}{f' {text}' if text else ''}: {error}") from None
    if options.question is None:
        _complete(options)
    return options


def _complete(options: Options) -> None:
    """What QEMU does unless told otherwise, and what only all options together tell."""
    if options.append and options.kernel is None:
        raise OptionError("-append only allowed with -kernel option")
    if options.initrd is not None and options.kernel is None:
        raise OptionError("-initrd only allowed with -kernel option")
    serial = options.defaults and not options.serial_given
    monitor = options.defaults and not options.monitor_given
    if options.nographic or options.display is None:
        if serial and monitor:
            _serial(options, "mon:stdio")
        elif serial:
            _serial(options, "stdio")
            options.chardevs["serial0"].options["signal"] = "off" if options.nographic else "on"
        elif monitor and options.nographic:
            _monitor(options, "stdio")
    used: dict[str, int] = {}
    for label, where in [
        *((monitor.chardev, monitor.option) for monitor in options.monitors),
        *([(options.serial, "-serial")] if options.serial is not None else []),
    ]:
        if label not in options.chardevs:
            raise OptionError(f'{where}: chardev "{label}" not found')
        used[label] = used.get(label, 0) + 1
        if used[label] > 1 and not options.chardevs[label].mux:
            raise OptionError(f'{where}: chardev "{label}" is already in use')
    terminals = [known for known in options.chardevs.values() if known.backend == "stdio"]
    if len(terminals) > 1:
        raise OptionError(f"{terminals[1].option}: cannot use stdio by multiple character devices")


def help_text() -> str:
    """The options, each with what it is for."""
    lines = []
    for option in _LISTED:
        if not option.summary:
            continue
        names = ", ".join(f"-{name}" for name in option.names)
        lines.append(f"  {names} {option.argument}".rstrip())
        lines += [f"      {line}" for line in textwrap.wrap(" ".join(option.summary.split()), 78)]
    return "\n".join(lines)
