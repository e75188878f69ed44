"""A machine on its way out: rounds over its RAM while it runs, and the switchover."""

import asyncio
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from savevm.channel import Channel, ChannelError, RateLimit
from savevm.machine.layouts import RELEASES
from savevm.migration.board import Board, Describe, emit
from savevm.migration.return_path import (
    KEEPS,
    LINGER,
    ReturnPathError,
    listen_to,
    new_number,
    opening,
    question,
)
from savevm.migration.settings import Settings
from savevm.migration.wires import (
    Patience,
    askable,
    both_ways,
    connect,
    credentials_of,
    cut,
    part,
    words,
)
from savevm.ram import RamSaver
from savevm.savevm import Format, Ram, Saver, descriptor, ready
from savevm.stream.events import Command
from savevm.transport import Address, Credentials, Transport
from savevm_spec.constants import CMD_SWITCHOVER_START, RETURN_PONG, RETURN_SHUT

__all__ = ["ENDED", "Outgoing"]

ENDED: Final = ("completed", "failed", "cancelled")
# Releases that say when the last part of RAM begins.
_SWITCHOVER_START: Final = RELEASES[2:]

# Seconds: for the destination's first word; without a byte moving while the machine stands still; for
# the destination's word once it has everything; and for it to answer who asks for that word again.
_FIRST_WORD: Final = 30.0
_STALL: Final = 10.0
_WORD: Final = 10.0
_ANSWER: Final = 8.0
# Seconds over which a bandwidth is measured, and between two attempts to connect.
_WINDOW: Final = 0.1
_PAUSE: Final = 0.1
# What is not worth another round, in bytes, and what one step writes when the machine stands still.
_LITTLE: Final = 64 << 10
_TURN: Final = 1 << 20


class MigrationError(Exception):
    """A migration cannot go on; the text is for people."""


class _Stopper:
    """The machine as a saver sees it: who resumes it is decided when all is known."""

    def __init__(self, board: Board) -> None:
        self.board: Final = board
        self.stopped_at: float | None = None

    @property
    def running(self) -> bool:
        return self.board.running

    def stop(self) -> None:
        self.board.stop()
        self.board.set_runstate("finish-migrate")
        self.stopped_at = time.monotonic()

    def resume(self) -> None:
        pass


class Outgoing:
    """One migration of ``board`` to somewhere else.

    ``describe`` gives the machine's registry; ``release`` is that of the stream in which the machine
    came, if it did.  ``fds`` are descriptors that were handed over, by name, ``credentials`` those of
    TLS.  ``status`` is QEMU's word, ``error`` what went wrong, for people.

    ``run`` ends when the migration has.  The machine is then where the destination is ("completed",
    here "postmigrate"), or goes on here as before.  With the capability return-path it is never in
    both places: where the destination's word is lost it is asked again, and if it cannot be had, the
    machine stays here, paused.
    """

    def __init__(
        self,
        board: Board,
        settings: Settings,
        describe: Describe,
        *,
        machine_name: str = "spike",
        release: str = "",
        fds: MutableMapping[str, int] | None = None,
        credentials: Mapping[str, Credentials] | None = None,
    ) -> None:
        self.status = "none"
        self.error = ""
        self._board: Final = board
        self._settings: Final = settings
        self._describe: Final = describe
        self._machine_name: Final = machine_name
        self._came_as: Final = release
        self._fds: Final = fds
        self._credentials: Final = credentials or {}
        self._stopper: Final = _Stopper(board)
        self._task: asyncio.Task[Any] | None = None
        self._go_on: Final = asyncio.Event()
        # What is heard on the return path.
        self._pong: Final = asyncio.Event()
        self._keeps = False
        self._word: int | None = None
        # What the migration stands on, while there is one.
        self._transport: Transport | None = None
        self._channel: Channel | None = None
        self._saver: Saver | None = None
        self._ram: RamSaver | None = None
        self._ram_size = 0
        # The rounds, and what was left when the last one began, in bytes.
        self._passes = 1
        self._left = 0
        self._meter = _Meter()
        self._began = 0.0
        self._setup = 0.0
        self._sent_at = 0.0
        self._ended_at: float | None = None
        self._expected = 0.0

    # What others see and do

    def statistics(self) -> dict[str, Any]:
        """As ``query-migrate`` gives them: times in ms, sizes in bytes, mbps in 10**6 bits/s."""
        if self.status == "none":
            return {}
        told: dict[str, Any] = {"status": self.status}
        if self.status == "failed":
            told["error-desc"] = self.error
        if self.status in ("setup", "failed", "cancelled") or self._ram is None:
            return told
        end = time.monotonic() if self._ended_at is None else self._ended_at
        told["total-time"] = _ms(end - self._began)
        told["setup-time"] = _ms(self._setup)
        if self.status == "completed":
            stopped = self._stopper.stopped_at
            told["downtime"] = _ms(end - stopped) if stopped is not None else 0
        else:
            told["expected-downtime"] = _ms(self._expected)
            told["remaining"] = self._left
        return told | {"ram": self._ram_statistics()}

    def _ram_statistics(self) -> dict[str, Any]:
        saver, ram, meter = self._saver, self._ram, self._meter
        assert saver is not None
        assert ram is not None
        sent = saver.channel.position
        page = int(ram.page_size)
        bandwidth = meter.bandwidth
        if self.status == "completed" and self._ended_at is not None:
            bandwidth = sent / max(self._ended_at - self._began - self._setup, 1e-3)
        return {
            "total": self._ram_size,
            "postcopy-requests": 0,
            "dirty-sync-count": self._passes,
            "multifd-bytes": 0,
            "pages-per-second": int(meter.pages),
            "downtime-bytes": sent - meter.precopy if meter.precopy else 0,
            "page-size": page,
            "remaining": 0 if saver.whole is not None else saver.left,
            "postcopy-bytes": 0,
            "mbps": bandwidth * 8 / 1e6,
            "transferred": sent,
            "dirty-sync-missed-zero-copy": 0,
            "precopy-bytes": meter.precopy or sent,
            "duplicate": int(ram.zero),
            "dirty-pages-rate": int(meter.dirtied),
            "normal-bytes": int(ram.normal) * page,
            "normal": int(ram.normal),
        }

    def cancel(self) -> None:
        """End the migration; what has ended stays as it is.

        Once the destination has everything, it is asked whether it still can be.
        """
        if self.status in ("cancelling", *ENDED):
            return
        self._tell("cancelling")
        if self._task is None:
            # It was told to begin, and has not yet.
            return
        if not self._whole():
            self._task.cancel()
        elif self._transport is not None and self._pong.is_set():
            cut(self._transport)

    def go_on(self) -> None:
        """Go on from "pre-switchover"; raises ``MigrationError``."""
        if self.status != "pre-switchover":
            raise MigrationError(f"migration is not in state pre-switchover but {self.status}")
        self._go_on.set()

    # The migration

    async def run(self, uri: str) -> None:
        """Migrate to ``uri``; how it ended is in ``status``."""
        self._task = asyncio.current_task()
        self._began = time.monotonic()
        if self.status == "cancelling":
            self._end("cancelled", resume=True)
            return
        self._tell("setup")
        here: bool | None = True
        try:
            here = not await self._migrate(Address.parse(uri))
        except asyncio.CancelledError:
            if self.status != "cancelling":
                # The whole program ends.
                self._end("cancelled", resume=not self._whole())
                raise
        except Exception as error:
            if not _foreseen(error):
                self._end("failed", resume=not self._whole())
                raise
            self.error = self.error or words(error, self._transport)
            if isinstance(error, _UnknownError):
                here = None
        if here is None:
            self._end("failed", resume=False)
        elif here:
            self._end("cancelled" if self.status == "cancelling" else "failed", resume=True)
        else:
            self._end("completed", resume=False)

    def _end(self, status: str, *, resume: bool) -> None:
        self._ended_at = time.monotonic()
        if status == "completed":
            self._board.set_runstate("postmigrate")
        elif self._stopper.stopped_at is not None and not self._board.running:
            if resume:
                self._board.resume()
            else:
                self._board.set_runstate("paused")
        if status == "failed" and not self.error:
            self.error = "the program ended"
        self._tell(status)

    def _tell(self, status: str) -> None:
        self.status = status
        if self._settings.capabilities["events"]:
            emit(self._board, "MIGRATION", status=status)

    async def _migrate(self, address: Address) -> bool:
        """Whether the destination took over."""
        tls = credentials_of(self._settings, self._credentials)
        self._transport = transport = await connect(address, tls, self._fds)
        back: asyncio.Task[None] | None = None
        number = new_number()
        returns = self._settings.capabilities["return-path"]
        try:
            if returns:
                if not both_ways(transport):
                    raise MigrationError(f"there is no return path over {address.scheme}:")
                channel = Channel(transport, blocking=False)
                back = asyncio.create_task(listen_to(channel, self._heard))
            try:
                await self._send(transport, number if returns else None, back)
                if back is None:
                    return await self._closed(transport)
                await asyncio.wait({back}, timeout=_WORD)
            except (ChannelError, MigrationError, asyncio.CancelledError):
                if back is None or not self._whole():
                    raise
            if self._word is None:
                broken = back.done()
                cut(transport)
                return await self._settle(address, tls, number, broken=broken)
            return self._took_over(self._word)
        finally:
            self._abandon()
            if back is not None:
                back.cancel()
                await asyncio.wait({back})
                if not back.cancelled():
                    # Else the loop complains of an error that nobody looked at.
                    back.exception()
            await part(transport)

    def _abandon(self) -> None:
        """No more is sent: RAM need not be watched any longer."""
        if self._saver is not None and self._saver.phase != "completed":
            self._saver.cancel()

    async def _closed(self, transport: Transport) -> bool:
        """Close what has no way back: that all was taken is all that can be known."""
        if await part(transport) < 0:
            raise MigrationError(getattr(transport, "reason", "") or "closing failed")
        return True

    def _heard(self, kind: int, value: int) -> None:
        if kind == RETURN_SHUT:
            self._word = value
        elif kind == RETURN_PONG and value == KEEPS:
            self._keeps = True
        else:
            self._pong.set()

    def _took_over(self, word: int) -> bool:
        if word:
            raise MigrationError("the destination could not load the machine")
        return True

    def _whole(self) -> bool:
        """Whether the destination may have all that it takes to go on in this machine's place."""
        saver = self._saver
        return (
            saver is not None
            and saver.whole is not None
            and saver.channel.transferred >= saver.whole
        )

    async def _send(
        self, transport: Transport, number: int | None, back: asyncio.Task[None] | None
    ) -> None:
        settings = self._settings
        release = settings.release or self._came_as or RELEASES[-1]
        registry = self._describe(release, settings.drop, self._saved_runstate)
        rate = RateLimit(settings.max_bandwidth)
        channel = Channel(transport, rate=rate, blocking=False)
        switchover = [Command(0, CMD_SWITCHOVER_START, b"", b"")]
        self._saver = saver = Saver(
            registry,
            channel,
            Format(machine=self._machine_name),
            self._stopper,
            opening=opening(number) if number is not None else [],
            switchover=switchover if release in _SWITCHOVER_START else [],
        )
        ram = next(entry for entry in registry.entries if isinstance(entry, Ram))
        self._ram_size = sum(block.used_length for block in ram.blocks)
        saver.begin()
        # The destination is to answer now, not when a buffer is full.
        saver.flush()
        self._ram = ram.saver
        assert self._ram is not None
        self._setup = time.monotonic() - self._began
        self._tell("active")
        await self._live(saver, self._ram, rate, back)
        await self._switch_over(saver)

    def _saved_runstate(self) -> str:
        """What the machine does, apart from being migrated."""
        return "running" if self._stopper.stopped_at is not None else self._board.runstate

    async def _live(
        self, saver: Saver, ram: RamSaver, rate: RateLimit, back: asyncio.Task[None] | None
    ) -> None:
        """Send RAM until what is left is sent in no longer than the machine may stand still."""
        meter = self._meter
        meter.start(saver.channel, ram)
        self._expected = self._settings.downtime_limit
        self._left = self._ram_size
        round_began = time.monotonic()
        patience = Patience(saver.channel.fileno(), writing=True)
        while True:
            await self._ready(saver.channel, patience)
            rate.bandwidth = self._settings.max_bandwidth
            if back is not None and back.done():
                self._deserted(back)
            saver.step()
            meter.look(saver.channel, ram)
            if not ram.over:
                continue
            before, self._left = self._left, saver.left
            left = self._left
            now = time.monotonic()
            meter.dirtied = left / int(ram.page_size) / max(now - round_began, 1e-3)
            round_began = now
            meter.measure(saver.channel, ram)
            bandwidth = self._settings.parameters["avail-switchover-bandwidth"] or meter.bandwidth
            if bandwidth:
                self._expected = left / bandwidth
            self._passes += 1
            if self._settings.capabilities["events"]:
                emit(self._board, "MIGRATION_PASS", **{"pass": self._passes})
            # Rounds that still get much shorter make the time shorter that the machine stands still.
            pays = left > _LITTLE and 2 * left <= before
            long = self._expected > self._settings.downtime_limit if bandwidth else left > 0
            if long or pays:
                continue
            if back is None or self._pong.is_set():
                return
            await self._first_word(back)

    async def _ready(self, channel: Channel, patience: Patience) -> None:
        """Wait until the channel takes more; a machine that runs has the processor meanwhile."""
        while not self._board.running:
            await patience.turn()
            if not channel.rate_exceeded:
                return
            if not channel.frozen or not patience.ready():
                break
            channel.notify()
        await ready(channel)

    async def _first_word(self, back: asyncio.Task[None]) -> None:
        """The machine is not stopped for a destination of which nothing is known."""
        word = asyncio.ensure_future(self._pong.wait())
        try:
            await asyncio.wait(
                {word, back}, timeout=_FIRST_WORD, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            word.cancel()
        if back.done():
            self._deserted(back)
        if not self._pong.is_set():
            raise MigrationError("nothing comes back from the destination")

    def _deserted(self, back: asyncio.Task[None]) -> None:
        """The return path has ended too early."""
        if (error := back.exception()) is not None:
            raise error
        raise MigrationError(
            "the destination could not load the machine"
            if self._word
            else "the destination ended the connection"
        )

    async def _switch_over(self, saver: Saver) -> None:
        """Stop the machine and send what is left."""
        self._meter.precopy = saver.channel.position
        saver.stop()
        if self._settings.capabilities["pause-before-switchover"]:
            self._tell("pre-switchover")
            await self._go_on.wait()
        self._tell("device")
        while saver.left > _TURN:
            await self._moving(ready(saver.channel))
            saver.step()
        self._sent_at = time.monotonic()
        left = saver.complete()
        while left:
            await self._moving(descriptor(saver.channel, writing=True))
            left = saver.flush()

    async def _moving(self, step: Any) -> None:
        try:
            await asyncio.wait_for(step, _STALL)
        except TimeoutError:
            raise MigrationError(f"the destination took nothing for {_STALL:g} s") from None

    # When the word was lost

    async def _settle(
        self, address: Address, tls: Credentials | None, number: int, *, broken: bool
    ) -> bool:
        """Whether the destination, which has everything but whose word was lost, took over."""
        if not self._keeps:
            if broken:
                # As QEMU: it says its word before it ends the connection.
                raise MigrationError("the destination ended the connection without a word")
            raise _UnknownError("the destination is silent")
        if not askable(address):
            raise _UnknownError("the connection broke before the destination's word")
        deadline = time.monotonic() + _ANSWER
        while (left := deadline - time.monotonic()) > 0:
            try:
                word = await asyncio.wait_for(self._ask(address, tls, number), left)
            except (ConnectionRefusedError, FileNotFoundError):
                # It answers for as long; who listens no more is dead.
                if time.monotonic() < self._sent_at + LINGER:
                    raise MigrationError("the destination has died") from None
                break
            except (OSError, TimeoutError, ReturnPathError):
                word = None
            if word is not None:
                return self._took_over(word)
            await asyncio.sleep(_PAUSE)
        raise _UnknownError("the destination does not answer")

    async def _ask(self, address: Address, tls: Credentials | None, number: int) -> int | None:
        """The word of a destination that is asked for it, None where it gives none."""
        transport = await connect(address, tls, timeout=_ANSWER)
        words: list[int] = []

        def heard(kind: int, value: int) -> None:
            if kind == RETURN_SHUT:
                words.append(value)

        try:
            asking = Channel(transport, blocking=False)
            asking.write(question(number))
            asking.flush()
            asking.check()
            await listen_to(Channel(transport, blocking=False), heard)
        finally:
            await part(transport)
        return words[0] if words else None


class _UnknownError(MigrationError):
    """Nobody can tell who goes on."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why}: whether it runs the machine is unknown, which stays paused here; cont if the "
            "destination does not run it"
        )


class _Meter:
    """How fast it goes: bytes, pages sent and pages dirtied, each per second."""

    def __init__(self) -> None:
        self.bandwidth = 0.0
        self.pages = 0.0
        self.dirtied = 0.0
        self.precopy = 0
        self._at = 0.0
        self._bytes = 0
        self._pages = 0

    def start(self, channel: Channel, ram: RamSaver) -> None:
        self._at = time.monotonic()
        self._bytes = channel.transferred
        self._pages = int(ram.normal + ram.zero)

    def look(self, channel: Channel, ram: RamSaver) -> None:
        """Measure again once the last time is long ago; a window in which nothing moved goes on."""
        if time.monotonic() - self._at >= _WINDOW and channel.transferred > self._bytes:
            self.measure(channel, ram)
            self.start(channel, ram)

    def measure(self, channel: Channel, ram: RamSaver) -> None:
        """Over the window that began last; one that is too short says less than the one before."""
        elapsed = time.monotonic() - self._at
        sent = channel.transferred - self._bytes
        if sent and (elapsed >= _WINDOW or not self.bandwidth):
            elapsed = max(elapsed, 1e-3)
            self.bandwidth = sent / elapsed
            self.pages = (int(ram.normal + ram.zero) - self._pages) / elapsed


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _foreseen(error: Exception) -> bool:
    """Whether an error says something about the migration, not about this program."""
    return isinstance(error, OSError | MigrationError | ReturnPathError | ValueError)
