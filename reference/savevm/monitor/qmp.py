"""QMP: JSON commands and their answers, and events, on one connection each."""

import asyncio
import inspect
import json
import os
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import savevm
from savevm.monitor.lines import Port
from savevm.monitor.values import JsonError, Values

if TYPE_CHECKING:
    from savevm.monitor.emulator import Emulator

__all__ = ["COMMANDS", "VERSION", "Command", "CommandError", "Qmp", "Session", "command"]

# The QEMU whose commands these are, and what implements them.
VERSION: Final = {
    "qemu": {"micro": 0, "minor": 1, "major": 11},
    "package": f"savevm {savevm.__version__}",
}

# Commands of a client that wait for those before them; more are not read.
WAITING_MAX: Final = 8


class CommandError(Exception):
    """A command that failed: QEMU's class of the error, and what people are told."""

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        super().__init__(description)
        self.kind: Final = kind


Result = Any
Function = Callable[..., Result | Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what carries it out, and its arguments as name → type, with "?" if optional.

    A type is one of those below.  The function gets the session and the arguments by name,
    underscores for hyphens; optional ones that were not given are None.  ``arguments`` None: it gets
    all that were given, in one mapping.
    """

    function: Function
    arguments: Mapping[str, str] | None


COMMANDS: Final[dict[str, Command]] = {}


def command(name: str, **arguments: str) -> Callable[[Function], Function]:
    """Makes a function the command ``name``."""

    def register(function: Function) -> Function:
        types = {key.replace("_", "-"): kind for key, kind in arguments.items()}
        COMMANDS[name] = Command(function, types)
        return function

    return register


_TYPES: Final[dict[str, tuple[type, str]]] = {
    "string": (str, "string"),
    "boolean": (bool, "boolean"),
    "integer": (int, "integer"),
    "size": (int, "uint64"),
    "array": (list, "array"),
    "object": (dict, "object"),
}


def check(value: object, kind: str, name: str) -> None:
    """Raise ``CommandError`` unless ``value``, the argument ``name``, is of the type ``kind``."""
    python, word = _TYPES[kind]
    number = python is int
    if isinstance(value, python) and not (number and isinstance(value, bool)):
        assert not number or isinstance(value, int)
        low, high = (0, 1 << 64) if kind == "size" else (-(1 << 63), 1 << 63)
        if not number or low <= value < high:  # type: ignore[operator]
            return
    if kind == "size" or (number and isinstance(value, int) and not isinstance(value, bool)):
        expected = "uint64" if kind == "size" else "int64"
        raise CommandError(f"Parameter '{name}' expects {expected}")
    raise CommandError(f"Invalid parameter type for '{name}', expected: {word}")


def checked(given: Mapping[str, object], types: Mapping[str, str], within: str = "") -> None:
    """Raise ``CommandError`` unless there are all arguments that must be, and no others."""
    for name, kind in types.items():
        if name in given:
            check(given[name], kind.rstrip("?"), within + name)
        elif not kind.endswith("?"):
            raise CommandError(f"Parameter '{within}{name}' is missing")
    for name in given:
        if name not in types:
            raise CommandError(f"Parameter '{within}{name}' is unexpected")


@dataclass(slots=True)
class _Request:
    value: object
    fds: list[int]


class Session:
    """A client: ``fds`` are the descriptors that it has named, ``emulator`` what it commands."""

    def __init__(self, emulator: "Emulator", port: Port, *, pretty: bool) -> None:
        self.emulator: Final = emulator
        self.fds: dict[str, int] = {}
        self._port: Final = port
        self._indent: Final = 4 if pretty else None
        self._values: Final = Values()
        self._negotiated = False
        self._waiting: deque[_Request] = deque()
        self._unclaimed: list[int] = []
        self._ended = False
        self._worker: asyncio.Task[None] | None = None

    def greet(self) -> None:
        """Say who this is."""
        self._say({"QMP": {"version": VERSION, "capabilities": []}})

    def take_fd(self) -> int:
        """A descriptor that came with this command; raises ``CommandError``."""
        if not self._unclaimed:
            raise CommandError("No file descriptor supplied via SCM_RIGHTS")
        return self._unclaimed.pop(0)

    def event(self, name: str, data: dict[str, Any]) -> None:
        """Tell the client of an event."""
        if self._negotiated:
            seconds, nanoseconds = divmod(time.time_ns(), 10**9)
            stamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
            self._say({"timestamp": stamp, "event": name} | ({"data": data} if data else {}))

    def received(self, data: bytes, fds: list[int]) -> None:
        """Bytes from the client, and descriptors."""
        # They belong to the first command that is complete now.
        for value in self._values.feed(data):
            self._waiting.append(_Request(value, fds))
            fds = []
        if fds:
            self._claim(fds)
        if self._worker is None and self._waiting:
            self._worker = asyncio.create_task(self._work())
        if len(self._waiting) > WAITING_MAX:
            self._port.pause()

    def ended(self) -> None:
        """The client sends no more."""
        self._ended = True
        if self._worker is None:
            self._port.close()

    def closed(self) -> None:
        """The client is gone."""
        self._ended = True
        for request in self._waiting:
            _close(request.fds)
        self._waiting.clear()
        _close(self._unclaimed)
        _close(self.fds.values())
        self.fds.clear()

    async def _work(self) -> None:
        await self.emulator.ready.wait()
        while self._waiting:
            request = self._waiting.popleft()
            if request.fds:
                self._claim(request.fds)
            if len(self._waiting) == WAITING_MAX:
                self._port.resume()
            answer = await self._answer(request.value)
            if answer is not None:
                self._say(answer)
            # Whoever has much to ask does not keep the machine from running.
            await asyncio.sleep(0)
        self._worker = None
        if self._ended:
            self._port.close()

    def _claim(self, fds: list[int]) -> None:
        _close(self._unclaimed)
        self._unclaimed = fds

    def _say(self, message: dict[str, Any]) -> None:
        self._port.write(json.dumps(message, indent=self._indent).encode() + b"\r\n")

    async def _answer(self, value: object) -> dict[str, Any] | None:
        identity = {"id": value["id"]} if isinstance(value, dict) and "id" in value else {}
        try:
            return {"return": await self._execute(value)} | identity
        except CommandError as error:
            failure = {"class": error.kind, "desc": str(error)}
        except (OSError, ValueError) as error:
            failure = {"class": "GenericError", "desc": describe(error)}
        except Exception as error:
            # A defect here is no reason to end the guest, nor to leave the client without an answer.
            traceback.print_exc()
            failure = {"class": "GenericError", "desc": f"internal error: {error!r}"}
        return identity | {"error": failure}

    async def _execute(self, value: object) -> Result:
        if isinstance(value, JsonError):
            raise value
        if not isinstance(value, dict):
            raise CommandError("QMP input must be a JSON object")
        for name in value:
            # Out of band, which is not offered, would be "exec-oob".
            if name not in ("execute", "arguments", "id"):
                raise CommandError(f"QMP input member '{name}' is unexpected")
        if "execute" not in value:
            raise CommandError("QMP input lacks member 'execute'")
        name = value["execute"]
        if not isinstance(name, str):
            raise CommandError("QMP input member 'execute' must be a string")
        given = value.get("arguments", {})
        if not isinstance(given, dict):
            raise CommandError("QMP input member 'arguments' must be an object")
        known = COMMANDS.get(name)
        if not self._negotiated and name != "qmp_capabilities":
            raise CommandError(
                "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
            )
        if self._negotiated and name == "qmp_capabilities":
            raise CommandError(
                "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
            )
        if known is None:
            raise CommandError(f"The command {name} has not been found", "CommandNotFound")
        if known.arguments is None:
            result = known.function(self, given)
        else:
            checked(given, known.arguments)
            arguments = {arg.replace("-", "_"): given.get(arg) for arg in known.arguments}
            result = known.function(self, **arguments)
        if inspect.isawaitable(result):
            result = await result
        return {} if result is None else result

    def negotiate(self) -> None:
        """The client may send any command from now on, and gets events."""
        self._negotiated = True


class Qmp:
    """The front end that makes every connection a ``Session``."""

    impatient = True

    def __init__(self, emulator: "Emulator", *, pretty: bool = False) -> None:
        self._emulator: Final = emulator
        self._pretty: Final = pretty
        self._sessions: dict[Port, Session] = {}
        emulator.listeners.append(self._event)

    def opened(self, port: Port) -> None:
        session = Session(self._emulator, port, pretty=self._pretty)
        self._sessions[port] = session
        session.greet()

    def received(self, port: Port, data: bytes, fds: list[int]) -> None:
        self._sessions[port].received(data, fds)

    def ended(self, port: Port) -> None:
        self._sessions[port].ended()

    def closed(self, port: Port) -> None:
        self._sessions.pop(port).closed()

    def _event(self, name: str, data: dict[str, Any]) -> None:
        # A client that does not read is disconnected meanwhile.
        for session in list(self._sessions.values()):
            session.event(name, data)


def describe(error: OSError | ValueError) -> str:
    """In one line, for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _close(fds: Any) -> None:
    for fd in fds:
        os.close(fd)
