"""The process around the machine: who runs it, who commands it, and how it ends."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from savevm.machine.layouts import RELEASES
from savevm.machine.spike import Spike
from savevm.machine.state import HartState
from savevm.migration.incoming import Incoming
from savevm.migration.outgoing import ENDED, Outgoing
from savevm.migration.settings import Settings
from savevm.migration.spike import Arrival, describer
from savevm.monitor.lines import Backend, Port
from savevm.monitor.qmp import CommandError, describe
from savevm.monitor.snapshots import Drive
from savevm.transport import Address, Credentials

__all__ = ["MACHINE", "Console", "Emulator"]

MACHINE: Final = "spike"

# Seconds that a migration has to end with the process.
_LEAVING: Final = 1.0
_THREADS_MAX: Final = 1000
# Seconds until a thread that wants to run says so.  The board gives way for an instant every
# millisecond, and lets only those in who have.
_SWITCH: Final = 0.0002

Listener = Callable[[str, dict[str, Any]], None]


class Console:
    """The front end that is the guest's console."""

    impatient = False

    def __init__(self) -> None:
        self._ports: list[Port] = []
        self.typed: Callable[[bytes], None] = lambda data: None

    def write(self, data: bytes) -> None:
        """Show what the guest wrote."""
        for port in list(self._ports):
            port.write(data)

    def opened(self, port: Port) -> None:
        self._ports.append(port)

    def received(self, port: Port, data: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        self.typed(data)

    def ended(self, port: Port) -> None:
        # What the guest says is still shown.
        if not port.lasting:
            port.close()

    def closed(self, port: Port) -> None:
        self._ports.remove(port)


class Emulator:
    """A board and all that acts on it.

    ``listeners`` are told QMP events.  ``incoming_uri`` is where the machine comes from, "defer" if
    that is told later; ``autostart`` whether it runs once it can.  ``backends`` are opened by
    ``run``.  Methods that carry out a command raise ``CommandError``.
    """

    def __init__(
        self,
        board: Spike,
        settings: Settings,
        *,
        name: str = "",
        uuid: str = "00000000-0000-0000-0000-000000000000",
        incoming_uri: str | None = None,
        autostart: bool = True,
        reboots: bool = True,
        shuts_down: bool = True,
        drives: Sequence[Drive] = (),
        backends: Sequence[Backend] = (),
        credentials: dict[str, Credentials] | None = None,
    ) -> None:
        self.board: Final = board
        # What describes the machine to a stream in the layouts of a release.
        self.describe: Final = describer(board)
        self.settings: Final = settings
        self.name: Final = name
        self.uuid: Final = uuid
        self.autostart = autostart
        self.drives: Final = drives
        self.backends: Final = backends
        self.credentials: Final = credentials if credentials is not None else {}
        self.listeners: Final[list[Listener]] = []
        self.outgoing: Outgoing | None = None
        self.incoming: Incoming | None = None
        # Of the stream that the machine came in last.
        self.arrived_release = ""
        self._incoming_uri: Final = incoming_uri
        self._reboots: Final = reboots
        self._shuts_down: Final = shuts_down
        self._tasks: set[asyncio.Task[Any]] = set()
        # Set when the machine is as it is to begin with: commands wait for that.
        self.ready: Final = asyncio.Event()
        self._over: Final = asyncio.Event()
        self._code = 0
        self._failure: BaseException | None = None
        board.listeners.append(self._event)
        if incoming_uri is not None:
            board.set_runstate("inmigrate")

    # What a stream has of the machine

    @property
    def release(self) -> str:
        """The release of QEMU whose layouts are written."""
        return self.settings.release or self.arrived_release or RELEASES[-1]

    def receive(self) -> Arrival:
        """What takes in a stream of any release."""
        return Arrival(self.board, self.settings.drop)

    # Memory, as a debugger sees it

    def physical(self, address: int, count: int) -> Iterator[tuple[int, bytes]]:
        """What RAM and ROM have of ``count`` bytes: pieces of at most 1 MiB, and their addresses."""
        end = address + count
        for block in sorted((self.board.mrom, self.board.ram), key=lambda block: int(block.base)):
            base = int(block.base)
            at, last = max(address, base), min(end, base + block.used_length)
            while at < last:
                piece = min(1 << 20, last - at)
                yield at, bytes(block.view[at - base : at - base + piece])
                at += piece

    def read_physical(self, address: int, count: int) -> bytes | None:
        """``count`` bytes of RAM or ROM, None where there is neither."""
        pieces = [data for _, data in self.physical(address, count)]
        data = b"".join(pieces)
        return data if len(data) == count else None

    def translate(self, hart: HartState, address: int) -> int | None:
        """The physical address that a hart's virtual one stands for now, None for none."""
        satp = hart.csrs.get("satp", 0)
        levels = {8: 3, 9: 4, 10: 5}.get(satp >> 60)
        if hart.privilege == 3 or levels is None:
            return address
        bits = 12 + 9 * levels
        if address >> bits - 1 not in (0, (1 << 65 - bits) - 1):
            return None
        table = (satp & (1 << 44) - 1) << 12
        for level in reversed(range(levels)):
            found = self.read_physical(table + 8 * (address >> 12 + 9 * level & 511), 8)
            entry = int.from_bytes(found or b"", "little")
            if not entry & 1:
                return None
            table = (entry >> 10 & (1 << 44) - 1) << 12
            if entry & 0b1110:
                within = (1 << 12 + 9 * level) - 1
                return table & ~within | address & within
        return None

    def read_virtual(self, hart: HartState, address: int, count: int) -> bytes | None:
        """As ``read_physical``, at the addresses that a hart uses."""
        pieces = []
        while count:
            piece = min(count, 4096 - address % 4096)
            physical = self.translate(hart, address)
            data = self.read_physical(physical, piece) if physical is not None else None
            if data is None:
                return None
            pieces.append(data)
            address += piece
            count -= piece
        return b"".join(pieces)

    def hart(self, index: int | None) -> HartState:
        """The state of a hart, the first one for None."""
        if index is not None and not 0 <= index < len(self.board.harts):
            raise CommandError("Parameter 'cpu-index' expects a CPU number")
        return self.board.state().harts[index or 0]

    # Commands

    def stop(self) -> None:
        """Let the machine stand still."""
        if self.board.runstate == "inmigrate":
            self.autostart = False
            self._tell_incoming()
        elif self.board.running:
            self.board.stop()

    def cont(self) -> None:
        """Let the machine run."""
        state = self.board.runstate
        if state == "inmigrate":
            self.autostart = True
            self._tell_incoming()
        elif state in ("internal-error", "shutdown"):
            raise CommandError("Resetting the Virtual Machine is required")
        elif state == "finish-migrate":
            raise CommandError("Migration is not finalized yet")
        elif not self.board.running:
            self.board.resume()

    def _tell_incoming(self) -> None:
        if self.incoming is not None:
            self.incoming.autostart = self.autostart

    def reset(self) -> None:
        """Press the reset button."""
        if not self._reboots:
            if self._shuts_down:
                self.end("host-qmp-system-reset")
            else:
                self._event("SHUTDOWN", {"guest": False, "reason": "host-qmp-system-reset"})
                self._rest()
            return
        self.board.reset()
        if self.board.runstate not in ("running", "inmigrate", "finish-migrate"):
            self.board.set_runstate("prelaunch")

    def power_down(self) -> None:
        """Press the power button, which nothing on this board notices."""
        self._event("POWERDOWN", {})

    def end(self, reason: str, code: int = 0) -> None:
        """End the process."""
        if not self._over.is_set():
            self._code = code
            self._over.set()
            self._event("SHUTDOWN", {"guest": False, "reason": reason})

    @property
    def migrating(self) -> bool:
        """Whether the machine is on its way out."""
        return self.outgoing is not None and self.outgoing.status not in ENDED

    def migrate(self, uri: str, fds: MutableMapping[str, int]) -> asyncio.Task[None]:
        """Start to migrate to ``uri``: the task that ends when the migration has."""
        if self.board.runstate == "inmigrate":
            raise CommandError("Guest is waiting for an incoming migration")
        if self.migrating:
            raise CommandError("There's a migration process in progress")
        if self.board.runstate == "postmigrate":
            raise CommandError("Can't migrate the vm that was paused due to previous migration")
        address = migration_address(uri)
        if address.scheme == "fd" and address.target not in fds:
            raise CommandError(f"File descriptor named '{address.target}' has not been found")
        self.outgoing = Outgoing(
            self.board,
            self.settings,
            self.describe,
            machine_name=MACHINE,
            release=self.arrived_release,
            fds=fds,
            credentials=self.credentials,
        )
        return self._spawn(self._migrate(self.outgoing, uri))

    async def _migrate(self, outgoing: Outgoing, uri: str) -> None:
        await outgoing.run(uri)
        if outgoing.status == "failed":
            _say(outgoing.error)

    def migrate_cancel(self) -> None:
        """Stop migrating; the machine runs on here."""
        if self.outgoing is not None:
            self.outgoing.cancel()

    def migrate_incoming(
        self, uri: str, fds: MutableMapping[str, int], *, exits: bool = True
    ) -> None:
        """Wait for the machine at ``uri``; ``exits``: the process ends if it does not come."""
        if self._incoming_uri is None:
            raise CommandError("'-incoming' was not specified on the command line")
        if self.incoming is not None and self.incoming.status != "failed":
            raise CommandError("The incoming migration has already been started")
        address = migration_address(uri)
        if address.scheme == "fd" and address.target not in fds and not _inherited(address.target):
            raise CommandError(f"File descriptor named '{address.target}' has not been found")
        incoming = Incoming(
            self.board,
            self.settings,
            self.receive,
            machine_name=MACHINE,
            autostart=self.autostart,
            fds=fds,
            credentials=self.credentials,
            warn=lambda line: _say(f"warning: {line}"),
        )
        if self.incoming is not None:
            # It may have waited at the same address.
            self.incoming.leave()
        try:
            incoming.open(uri)
        except OSError as error:
            raise CommandError(describe(error)) from error
        before, self.incoming = self.incoming, incoming
        self._spawn(self._come_in(incoming, before, exits=exits))

    async def _come_in(self, incoming: Incoming, before: Incoming | None, *, exits: bool) -> None:
        if before is not None:
            await before.close()
        if await incoming.run():
            self.arrived_release = incoming.release
            for warning in incoming.warnings:
                _say(f"warning: {warning}")
            return
        _say(f"error while loading the machine: {incoming.error}")
        if exits:
            self._code = 1
            self._over.set()

    def migrate_continue(self, state: str) -> None:
        """Go on from a state in which a migration waits."""
        status = self.outgoing.status if self.outgoing is not None else "none"
        if self.outgoing is None or state != "pre-switchover" or status != state:
            raise CommandError(f"Migration not in expected state: {status}")
        self.outgoing.go_on()

    def set_capabilities(self, wanted: dict[str, bool]) -> None:
        """Switch capabilities, between migrations only."""
        if self.migrating:
            raise CommandError("There's a migration process in progress")
        self.settings.set_capabilities(wanted)

    def migration(self) -> dict[str, Any]:
        """As ``query-migrate`` tells it."""
        if self.outgoing is not None:
            return self.outgoing.statistics()
        return self.incoming.statistics() if self.incoming is not None else {}

    # The process

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # What nobody expected ends the process, which says it.
        if not task.cancelled() and task.exception() is not None:
            self._over.set()
            self._failure = task.exception()

    def _event(self, name: str, data: dict[str, Any]) -> None:
        if name.startswith("MIGRATION") and not self.settings.capabilities["events"]:
            return
        if self._over.is_set() and name != "SHUTDOWN":
            return
        for listener in list(self.listeners):
            listener(name, data)
        if name == "SHUTDOWN" and data.get("guest"):
            if self._shuts_down:
                self._code = self.board.exit_code or 0
                self._over.set()
            else:
                self._rest()

    def _rest(self) -> None:
        """Stand still until a reset, where others would end."""
        if self.board.running:
            self.board.stop()
        self.board.set_runstate("shutdown")

    async def run(self) -> int:
        """Run until something ends it: the process's exit code.

        Raises ``OSError`` where a backend cannot be opened, and ``CommandError`` for an address to
        come in from that cannot be used.  Threads that wait for others may be left behind.
        """
        loop = asyncio.get_running_loop()
        sys.setswitchinterval(_SWITCH)
        # Who waits in one for a FIFO that nobody opens is not to keep others from migrating.
        loop.set_default_executor(ThreadPoolExecutor(_THREADS_MAX))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled, number)
        try:
            for backend in self.backends:
                if backend.front is not None:
                    await self._unless_over(backend.open())
            if not self._over.is_set():
                self._spawn(self.board.run())
                if self._incoming_uri is None:
                    if self.autostart:
                        self.board.resume()
                elif self._incoming_uri != "defer":
                    self.migrate_incoming(self._incoming_uri, {})
                self.ready.set()
            await self._over.wait()
        finally:
            await self._leave()
            for backend in self.backends:
                backend.close()
        if self._failure is not None:
            raise self._failure
        return self._code

    async def _leave(self) -> None:
        """End what is under way; whoever waits for others there is not waited for."""
        for task in self._tasks:
            task.cancel()
        ending = set(self._tasks)
        if self.incoming is not None:
            ending.add(asyncio.create_task(self.incoming.close()))
        if ending:
            await asyncio.wait(ending, timeout=_LEAVING)

    async def _unless_over(self, opening: Any) -> None:
        """Wait for ``opening``, but not for longer than the process is to live."""
        over = asyncio.ensure_future(self._over.wait())
        opened = asyncio.ensure_future(opening)
        await asyncio.wait({over, opened}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if opened.done():
            opened.result()
        else:
            opened.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await opened

    def _signalled(self, number: int) -> None:
        if not self._over.is_set():
            self.end("host-signal")
            _say(f"terminating on signal {number}")


def _say(words: str) -> None:
    """Tell whoever started the process, if anybody listens still."""
    with contextlib.suppress(OSError):
        print(f"savevm machine: {words}", file=sys.stderr, flush=True)


def _inherited(number: str) -> bool:
    """Whether a descriptor came with the process: those that it opened itself are not to be had."""
    try:
        return os.get_inheritable(int(number))
    except (OSError, ValueError, OverflowError):
        return False


def migration_address(uri: str) -> Address:
    """The address that QEMU would take ``uri`` for; raises ``CommandError``."""
    scheme = uri.partition(":")[0]
    if ":" not in uri or scheme not in ("tcp", "unix", "exec", "fd", "file"):
        raise CommandError(f"unknown migration protocol: {uri}")
    try:
        return Address.parse(uri)
    except OSError as error:
        raise CommandError(describe(error)) from error
