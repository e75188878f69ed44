"""A machine on its way in: one stream at a time, until one was loaded."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from typing import Any, Final

from savevm.channel import Channel, ChannelError, End
from savevm.errors import StreamError, stream_error
from savevm.migration.board import Arrival, Board, Receive, emit
from savevm.migration.return_path import (
    KEEPS,
    LINGER,
    QUESTION,
    message,
    question,
    tagged,
)
from savevm.migration.settings import Settings
from savevm.migration.wires import Patience, both_ways, credentials_of, in_thread, part, words
from savevm.savevm import Loader, LoadError, descriptor
from savevm.stream.events import Command
from savevm.transport import (
    Address,
    Credentials,
    Listening,
    Tls,
    TlsError,
    Transport,
    listen,
    open_input,
)
from savevm_spec.constants import (
    CMD_OPEN_RETURN_PATH,
    CMD_PING,
    CMD_SWITCHOVER_START,
    COMMAND_NAMES,
    RETURN_PONG,
    RETURN_SHUT,
)

__all__ = ["Incoming"]

# Seconds: for a description behind the EOF mark; for bytes of a connection that its source has given
# up; and for a source to end the connection once it has our word.
_DESCRIPTION: Final = 1.0
_DRAINED: Final = 0.2
_FAREWELL: Final = 5.0
# Seconds for who connects to say what for, and how many may be about to.
_GREETING: Final = 30.0
_SILENT: Final = 64
_QUESTION: Final = question(0)[: QUESTION - 4]


class Incoming:
    """Where ``board`` comes in: ``open`` an address, then ``run``, again after a failure.

    ``receive`` gives an ``Arrival`` for each attempt.  ``autostart``, which may be changed on the way:
    the machine runs if it ran when it was saved.  ``warn`` is told of those who connect and are turned
    away for what they do with TLS.  ``status`` is QEMU's word, ``error`` what went wrong, for people,
    and ``cause`` the ``StreamError`` or ``ChannelError`` behind it.  ``address`` is where it listens,
    ``release`` whose layouts came in, ``warnings`` are lines for people.
    """

    def __init__(
        self,
        board: Board,
        settings: Settings,
        receive: Receive,
        *,
        machine_name: str = "spike",
        autostart: bool = True,
        fds: MutableMapping[str, int] | None = None,
        credentials: Mapping[str, Credentials] | None = None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.status = "none"
        self.error = ""
        self.cause: Exception | None = None
        self.address: Address | None = None
        self.release = ""
        self.warnings: list[str] = []
        self._board: Final = board
        self._settings: Final = settings
        self._receive: Final = receive
        self._machine_name: Final = machine_name
        self.autostart = autostart
        self._fds: Final = fds
        self._credentials: Final = credentials or {}
        self._warn: Final = warn
        self._listening: Listening | None = None
        self._guests: Final[set[asyncio.Task[None]]] = set()
        # Those that have not said what for, who came first at first.
        self._silent: Final[dict[asyncio.Task[None], None]] = {}
        self._streams: Final[asyncio.Queue[tuple[Transport, Channel]]] = asyncio.Queue(1)
        # Set while no stream is being loaded.
        self._idle: Final = asyncio.Event()
        self._idle.set()
        # The source of what is being loaded has given up its connection.
        self._given_up = False
        self._wake: Final = asyncio.Event()
        self._number: int | None = None
        self._taken_over: int | None = None

    def statistics(self) -> dict[str, Any]:
        """As ``query-migrate`` gives them on the destination."""
        if self.status == "none":
            return {}
        told: dict[str, Any] = {"status": self.status}
        if self.status == "failed":
            told["error-desc"] = self.error
        place = self.address if self.status in ("setup", "active") else None
        if place is not None and place.scheme == "tcp":
            where = {"type": "inet", "host": place.target, "port": str(place.port)}
            told["socket-address"] = [where]
        elif place is not None and place.scheme == "unix":
            told["socket-address"] = [{"type": "unix", "path": place.target}]
        return told

    # Where from

    def open(self, uri: str) -> None:
        """Wait at ``uri`` from now on; raises ``OSError``."""
        place = Address.parse(uri)
        tls = credentials_of(self._settings, self._credentials)
        if place.scheme in ("tcp", "unix"):
            self._listening = listen(place, tls=tls)
            place = self._listening.address
            loop = asyncio.get_running_loop()
            loop.add_reader(self._listening.fileno(), self._admit, self._listening)
        self.address = place
        if self._board.runstate != "inmigrate":
            self._board.set_runstate("inmigrate")
        self._tell("setup")

    async def close(self) -> None:
        """Wait and answer no more."""
        self.leave()
        for guest in self._guests:
            guest.cancel()
        await asyncio.gather(*self._guests, return_exceptions=True)
        while not self._streams.empty():
            await part(self._streams.get_nowait()[0])

    def leave(self) -> None:
        """Let nobody else connect."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None

    def _admit(self, listening: Listening) -> None:
        """Have in who connects; who has been silent for longest makes room."""
        full = len(self._silent) >= _SILENT
        try:
            transport = listening.admit()
        except OSError as error:
            # Gone again, else there are no descriptors.
            full = not isinstance(error, BlockingIOError)
        else:
            guest = self._spawn(self._greet(transport))
            self._silent[guest] = None
            guest.add_done_callback(lambda guest: self._silent.pop(guest, None))
        if full and self._silent:
            oldest = next(iter(self._silent))
            del self._silent[oldest]
            oldest.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        guest = asyncio.create_task(work)
        self._guests.add(guest)
        guest.add_done_callback(self._guests.discard)
        return guest

    async def _greet(self, transport: Transport) -> None:
        """Answer a question; anything else is the stream that is waited for, if one is."""
        kept = False
        try:
            channel = Channel(transport, blocking=False)
            async with asyncio.timeout(_GREETING):
                begin = await _beginning(transport, channel)
            guest = asyncio.current_task()
            assert guest is not None
            self._silent.pop(guest, None)
            if len(begin) == QUESTION and begin.startswith(_QUESTION):
                await self._answer(transport, int.from_bytes(begin[-4:], "big"))
            elif begin and self.status in ("setup", "failed") and not self._streams.full():
                self._streams.put_nowait((transport, channel))
                kept = True
        except TlsError as error:
            self._warn(words(error))
        except TimeoutError:
            pass
        finally:
            if not kept:
                await part(transport)

    async def _answer(self, transport: Transport, number: int) -> None:
        """Say whether the machine of a migration was taken over.

        Who asks has given up its connection, but what it sent may be on its way still.
        """
        if self._number == number:
            self._given_up = True
            self._wake.set()
        await self._idle.wait()
        refused = 0 if self._taken_over == number else 1
        out = Channel(transport, blocking=False)
        out.write(message(RETURN_PONG, number) + message(RETURN_SHUT, refused))
        out.flush()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_ended(transport), _FAREWELL)

    # One stream

    async def run(self, uri: str = "") -> bool:
        """Load the next stream that comes; whether the machine was taken over.

        It is then as the stream says, and runs if it ran; else it is not changed but for its RAM,
        waits as before, and the next ``run`` is another attempt.  ``uri`` is opened first.
        """
        opened: tuple[Transport, Channel] | None = None
        try:
            if uri:
                self.open(uri)
            assert self.address is not None, "open comes first"
            opened = await self._opened(self.address)
            transport, channel = opened
            self._idle.clear()
            return await self._load(transport, channel)
        except OSError as error:
            return self._failed(error, opened[0] if opened is not None else None)
        finally:
            self._idle.set()
            if opened is not None:
                await part(opened[0])

    async def _opened(self, place: Address) -> tuple[Transport, Channel]:
        if self._listening is not None:
            return await self._streams.get()
        tls = credentials_of(self._settings, self._credentials)
        fds = self._fds
        transport = await in_thread(lambda: open_input(place, tls=tls, fds=fds, blocking=False))
        return transport, Channel(transport, blocking=False)

    async def _load(self, transport: Transport, channel: Channel) -> bool:
        self.error, self.cause, self._number = "", None, None
        self._given_up = False
        self._tell("active")
        arrival = self._receive()
        back = _Answers(Channel(transport, blocking=False) if both_ways(transport) else None)

        def command(event: Command) -> None:
            if event.number == CMD_OPEN_RETURN_PATH:
                back.open()
            elif event.number == CMD_PING:
                value = int.from_bytes(event.payload, "big")
                if tagged(value) and self._listening is not None and back.opened:
                    self._number = value
                    back.say(RETURN_PONG, KEEPS)
                back.say(RETURN_PONG, value)
            elif event.number != CMD_SWITCHOVER_START:
                raise stream_error(
                    "command.unsupported",
                    event.offset + 1,
                    None,
                    f"{COMMAND_NAMES[event.number]}, which this machine does not do",
                )

        loader = Loader(arrival.registry, self._machine_name, command=command)
        try:
            await self._read(loader, channel)
            loader.finish()
            try:
                arrival.apply()
            except ValueError as error:
                raise stream_error(
                    "section.state.refused", channel.position, None, str(error)
                ) from error
        except (LoadError, ChannelError, StreamError) as error:
            back.say(RETURN_SHUT, 1)
            return self._failed(error, transport)
        self.release = arrival.release
        self.warnings = [*loader.warnings, *arrival.warnings]
        self._start(arrival)
        self._taken_over = self._number
        back.say(RETURN_SHUT, 0)
        self._tell("completed")
        self._linger()
        return True

    async def _read(self, loader: Loader, channel: Channel) -> None:
        """Feed the loader until it has it all; what comes too early to an end, it refuses itself."""
        patience = Patience(channel.fileno(), writing=False)
        while not loader.described:
            if chunk := channel.read_chunk():
                loader.feed(chunk)
                await patience.turn()
            elif channel.error:
                raise ChannelError(channel.error, channel.end)
            elif channel.end is not End.OPEN:
                return
            elif patience.ready():
                await patience.turn()
            elif not await self._more(channel, loader):
                return

    async def _more(self, channel: Channel, loader: Loader) -> bool:
        """Wait for more; False where what is there is all."""
        loop = asyncio.get_running_loop()
        came = False

        def come() -> None:
            nonlocal came
            came = True
            self._wake.set()

        loop.add_reader(channel.fileno(), come)
        try:
            while not came:
                patience = _DRAINED if self._given_up else _DESCRIPTION if loader.ended else None
                self._wake.clear()
                async with asyncio.timeout(patience):
                    await self._wake.wait()
        except TimeoutError:
            return came
        finally:
            loop.remove_reader(channel.fileno())
        return True

    def _start(self, arrival: Arrival) -> None:
        board = self._board
        state = arrival.runstate or "running"
        if state == "running" and self.autostart:
            board.resume()
        else:
            board.set_runstate("paused" if state == "running" else state)

    def _linger(self) -> None:
        """Go on answering whoever may ask; otherwise wait for nobody."""

        async def linger() -> None:
            await asyncio.sleep(LINGER)
            self.leave()

        if self._number is None:
            self.leave()
        else:
            self._spawn(linger())

    def _failed(self, error: Exception, transport: Transport | None) -> bool:
        self.cause = error.cause if isinstance(error, LoadError) else error
        self.error = words(self.cause, transport)
        self._board.set_runstate("inmigrate")
        self._tell("failed")
        return False

    def _tell(self, status: str) -> None:
        self.status = status
        if self._settings.capabilities["events"]:
            emit(self._board, "MIGRATION", status=status)


class _Answers:
    """What is said on the return path, once it is open, if there is one."""

    def __init__(self, channel: Channel | None) -> None:
        self._channel: Final = channel
        self.opened = False

    def open(self) -> None:
        self.opened = self._channel is not None

    def say(self, kind: int, value: int) -> None:
        """Say it; who does not listen will ask."""
        if self.opened and self._channel is not None:
            self._channel.write(message(kind, value))
            self._channel.flush()


async def _beginning(transport: Transport, channel: Channel) -> bytes:
    """As many bytes as a question has, fewer where they cannot become one; raises ``TlsError``."""
    while isinstance(transport, Tls):
        try:
            transport.secure()
            break
        except BlockingIOError:
            await descriptor(channel, writing=False)
    while True:
        begin = channel.peek(QUESTION)
        asks = begin[: QUESTION - 4] == _QUESTION[: len(begin)]
        if not asks or len(begin) == QUESTION or channel.end is not End.OPEN:
            return begin
        await descriptor(channel, writing=False)


async def _ended(transport: Transport) -> None:
    """Wait for the peer to end the connection."""
    channel = Channel(transport, blocking=False)
    while channel.end is End.OPEN and not channel.error:
        if not channel.read_chunk():
            await descriptor(channel, writing=False)
