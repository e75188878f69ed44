"""The commands of QMP."""

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from savevm.machine.spike import HARTS_MAX
from savevm.monitor import hmp
from savevm.monitor.emulator import MACHINE, migration_address
from savevm.monitor.qmp import (
    COMMANDS,
    VERSION,
    Command,
    CommandError,
    Session,
    check,
    checked,
    command,
)
from savevm.transport import Credentials

__all__: list[str] = []


@command("qmp_capabilities", enable="array?")
def _capabilities(session: Session, enable: list[Any] | None) -> None:
    for name in enable or ():
        check(name, "string", "enable[0]")
        raise CommandError(f"Capability {name} is not available")
    session.negotiate()


# The machine


@command("query-version")
def _version(session: Session) -> Any:
    return VERSION


@command("query-commands")
def _commands(session: Session) -> Any:
    return [{"name": name} for name in COMMANDS]


@command("query-name")
def _name(session: Session) -> Any:
    return {"name": session.emulator.name} if session.emulator.name else {}


@command("query-uuid")
def _uuid(session: Session) -> Any:
    return {"UUID": session.emulator.uuid}


@command("query-target")
def _target(session: Session) -> Any:
    return {"arch": "riscv64"}


@command("query-kvm")
def _kvm(session: Session) -> Any:
    return {"enabled": False, "present": False}


@command("query-status")
def _status(session: Session) -> Any:
    board = session.emulator.board
    return {"status": board.runstate, "running": board.running}


@command("query-cpus-fast")
def _cpus(session: Session) -> Any:
    return [
        {
            "thread-id": os.getpid(),
            "qom-type": "max-riscv-cpu",
            "props": {"core-id": index, "thread-id": 0, "socket-id": 0, "cluster-id": 0},
            "qom-path": f"/machine/soc0/harts[{index}]",
            "cpu-index": index,
            "target": "riscv64",
        }
        for index in range(len(session.emulator.board.harts))
    ]


@command("query-machines", compat_props="boolean?")
def _machines(session: Session, compat_props: bool | None) -> Any:
    return [
        {
            "hotpluggable-cpus": False,
            "name": MACHINE,
            "numa-mem-supported": False,
            "default-cpu-type": "max-riscv-cpu",
            "acpi": False,
            "cpu-max": HARTS_MAX,
            "deprecated": False,
            "default-ram-id": session.emulator.board.ram.name,
        }
    ]


@command("query-current-machine")
def _current_machine(session: Session) -> Any:
    return {"wakeup-suspend-support": False}


@command("query-memory-size-summary")
def _memory_size(session: Session) -> Any:
    return {"base-memory": session.emulator.board.ram.used_length}


@command("query-memdev")
def _memory_backends(session: Session) -> Any:
    ram = session.emulator.board.ram
    return [
        {
            "share": False,
            "reserve": True,
            "prealloc": False,
            "host-nodes": [],
            "size": ram.used_length,
            "merge": False,
            "dump": True,
            "policy": "default",
            "id": ram.name,
        }
    ]


def _nothing(session: Session) -> Any:
    return []


# What this machine has none of; a drive is only where snapshots are kept.
for _query in (
    "query-memory-devices",
    "query-iothreads",
    "query-jobs",
    "query-mice",
    "query-block",
    "query-named-block-nodes",
):
    command(_query)(_nothing)


@command("query-hotpluggable-cpus")
def _hotpluggable(session: Session) -> None:
    raise CommandError("machine does not support hot-plugging CPUs")


@command("query-chardev")
def _backends(session: Session) -> Any:
    return [
        {"frontend-open": backend.front is not None, "filename": backend.filename}
        | {"label": backend.label}
        for backend in session.emulator.backends
    ]


@command("stop")
def _stop(session: Session) -> None:
    session.emulator.stop()


@command("cont")
def _cont(session: Session) -> None:
    session.emulator.cont()


@command("system_reset")
def _reset(session: Session) -> None:
    session.emulator.reset()


@command("system_powerdown")
def _power_down(session: Session) -> None:
    session.emulator.power_down()


@command("quit")
def _quit(session: Session) -> None:
    session.emulator.end("host-qmp-quit")


@command("human-monitor-command", command_line="string", cpu_index="integer?")
async def _human(session: Session, command_line: str, cpu_index: int | None) -> str:
    emulator = session.emulator
    emulator.hart(cpu_index)
    human = hmp.Human(emulator, session.fds, hart=cpu_index or 0)
    text = await human.execute(command_line, detached=True)
    return text.replace("\n", "\r\n")


# Memory


@command("pmemsave", val="size", size="size", filename="string")
async def _save_physical(session: Session, val: int, size: int, filename: str) -> None:
    with _created(filename) as fd:
        at = val
        for address, data in session.emulator.physical(val, size):
            await _put_zeros(fd, address - at)
            await _put(fd, data)
            at = address + len(data)
            await asyncio.sleep(0)
        # What no memory is at reads as zeros.
        await _put_zeros(fd, val + size - at)


@command("memsave", val="size", size="size", filename="string", cpu_index="integer?")
async def _save_virtual(
    session: Session, val: int, size: int, filename: str, cpu_index: int | None
) -> None:
    emulator = session.emulator
    hart = emulator.hart(cpu_index)
    with _created(filename) as fd:
        end = val + size
        while val < end:
            piece = min(end - val, 4096 - val % 4096)
            data = emulator.read_virtual(hart, val, piece)
            if data is None:
                raise CommandError(f"Invalid addr 0x{val:016x}/size {end - val} specified")
            await _put(fd, data)
            val += piece
            if val & 0xFFFFF == 0:
                await asyncio.sleep(0)


@contextlib.contextmanager
def _created(path: str) -> Iterator[int]:
    """A descriptor of the file, empty; nothing waits for who reads a FIFO."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o666)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CommandError(f"Could not open '{path}': {why}") from error
    try:
        yield fd
    finally:
        os.close(fd)


async def _put(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            writable = asyncio.Event()
            loop.add_writer(fd, writable.set)
            try:
                await writable.wait()
            finally:
                loop.remove_writer(fd)


async def _put_zeros(fd: int, count: int) -> None:
    """As ``_put``; a hole where there can be one."""
    if count and stat.S_ISREG(os.fstat(fd).st_mode):
        try:
            os.ftruncate(fd, os.lseek(fd, count, os.SEEK_CUR))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", os.strerror(errno.EFBIG))
            raise CommandError(f"writing memory failed: {why}") from error
        return
    while count:
        piece = min(count, 1 << 20)
        await _put(fd, bytes(piece))
        count -= piece
        await asyncio.sleep(0)


# Descriptors


@command("getfd", fdname="string")
def _get_fd(session: Session, fdname: str) -> None:
    fd = session.take_fd()
    if fdname[:1].isdigit():
        os.close(fd)
        raise CommandError("Parameter 'fdname' expects a name not starting with a digit")
    if (before := session.fds.pop(fdname, None)) is not None:
        os.close(before)
    session.fds[fdname] = fd


@command("closefd", fdname="string")
def _close_fd(session: Session, fdname: str) -> None:
    if fdname not in session.fds:
        raise CommandError(f"File descriptor named '{fdname}' not found")
    os.close(session.fds.pop(fdname))


# Migration


@command("migrate", uri="string?", channels="array?", detach="boolean?", resume="boolean?")
def _migrate(
    session: Session,
    uri: str | None,
    channels: list[Any] | None,
    detach: bool | None,
    resume: bool | None,
) -> None:
    where = _destination(uri, channels)
    if resume:
        raise CommandError("Cannot resume if there is no paused migration")
    session.emulator.migrate(where, session.fds)


@command("migrate-incoming", uri="string?", channels="array?", exit_on_error="boolean?")
def _migrate_incoming(
    session: Session, uri: str | None, channels: list[Any] | None, exit_on_error: bool | None
) -> None:
    where = _destination(uri, channels)
    session.emulator.migrate_incoming(where, session.fds, exits=exit_on_error is not False)


def _destination(uri: str | None, channels: list[Any] | None) -> str:
    """The URI, also of a list of channels, of which only "main" is known."""
    if (uri is None) == (channels is None):
        raise CommandError(
            "need either 'uri' or 'channels' argument"
            if uri is None
            else "'uri' and 'channels' arguments are mutually exclusive; exactly one of the two "
            "should be present in 'migrate' qmp command "
        )
    if uri is not None:
        return uri
    assert channels is not None
    if len(channels) != 1:
        raise CommandError("Channel list must have one entry")
    check(channels[0], "object", "channels[0]")
    checked(channels[0], {"channel-type": "string", "addr": "object"}, "channels[0].")
    if channels[0]["channel-type"] != "main":
        raise CommandError("Channel list has no main channel")
    address = channels[0]["addr"]
    transport = address.get("transport")
    check(transport, "string", "channels[0].addr.transport")
    members = {
        "socket": {"type": "string", "host": "string?", "port": "string?", "path": "string?"}
        | {"str": "string?"},
        "exec": {"args": "array"},
        "file": {"filename": "string", "offset": "size"},
    }.get(transport)
    if members is None:
        raise CommandError("Parameter 'channels[0].addr.transport' is none of socket, exec, file")
    checked(address, {"transport": "string", **members}, "channels[0].addr.")
    if transport == "file":
        return f"file:{address['filename']},offset={address['offset']}"
    if transport == "exec":
        match address["args"]:
            case ["/bin/sh", "-c", str(line)]:
                return f"exec:{line}"
        raise CommandError("only /bin/sh -c is supported")
    match address:
        case {"type": "inet", "host": host, "port": port}:
            return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
        case {"type": "unix", "path": path}:
            return f"unix:{path}"
        case {"type": "fd", "str": name}:
            return f"fd:{name}"
    raise CommandError("Parameter 'channels[0].addr' lacks what its type wants")


@command("migrate_cancel")
def _migrate_cancel(session: Session) -> None:
    session.emulator.migrate_cancel()


@command("migrate-continue", state="string")
def _migrate_continue(session: Session, state: str) -> None:
    session.emulator.migrate_continue(state)


@command("migrate-pause")
def _migrate_pause(session: Session) -> None:
    raise CommandError(
        "migrate-pause is currently only supported during postcopy-active or postcopy-recover state"
    )


@command("migrate-recover", uri="string")
def _migrate_recover(session: Session, uri: str) -> None:
    migration_address(uri)
    raise CommandError("Migrate recover can only be run when postcopy is paused.")


@command("migrate-start-postcopy")
def _migrate_start_postcopy(session: Session) -> None:
    raise CommandError("Enable postcopy with migrate_set_capability before the start of migration")


@command("query-migrate")
def _query_migrate(session: Session) -> Any:
    return session.emulator.migration()


@command("query-migrate-parameters")
def _query_parameters(session: Session) -> Any:
    return session.emulator.settings.parameters


@command("query-migrate-capabilities")
def _query_capabilities(session: Session) -> Any:
    return [
        {"state": state, "capability": name}
        for name, state in session.emulator.settings.capabilities.items()
    ]


def _set_parameters(session: Session, wanted: dict[str, Any]) -> None:
    session.emulator.settings.set_parameters(wanted)


# Which arguments it has is for the settings to say.
COMMANDS["migrate-set-parameters"] = Command(_set_parameters, None)


@command("migrate-set-capabilities", capabilities="array")
def _set_capabilities(session: Session, capabilities: list[Any]) -> None:
    wanted = {}
    for index, item in enumerate(capabilities):
        check(item, "object", f"capabilities[{index}]")
        checked(item, {"capability": "string", "state": "boolean"}, f"capabilities[{index}].")
        wanted[item["capability"]] = item["state"]
    session.emulator.set_capabilities(wanted)


# TLS


@command(
    "object-add",
    qom_type="string",
    id="string",
    dir="string?",
    endpoint="string?",
    verify_peer="boolean?",
    passwordid="string?",
    priority="string?",
)
def _object_add(
    session: Session, qom_type: str, id: str, dir: str | None, verify_peer: bool | None, **rest: Any
) -> None:
    if qom_type != "tls-creds-x509":
        raise CommandError(f"Parameter 'qom-type' does not accept value '{qom_type}'")
    if dir is None:
        raise CommandError("Parameter 'dir' is missing")
    for name in ("passwordid", "priority"):
        if rest[name] is not None:
            raise CommandError(f"Parameter '{name}' is not supported by this machine")
    known = session.emulator.credentials
    if id in known:
        raise CommandError(f"attempt to add duplicate property '{id}' to object (type 'container')")
    known[id] = Credentials(dir, verify_peer=verify_peer is not False)


@command("object-del", id="string")
def _object_del(session: Session, id: str) -> None:
    if session.emulator.credentials.pop(id, None) is None:
        raise CommandError(f"object '{id}' not found")
