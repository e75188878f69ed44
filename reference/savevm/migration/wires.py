"""Opening and closing transports without holding up the event loop."""

import asyncio

# What Python would import with the first thread, when there may be no descriptors any more, and when a
# host is first looked up: beside a machine that runs, each system call of a thread waits for a turn.
import concurrent.futures.thread  # noqa: F401
import encodings.idna  # noqa: F401
import select
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Final

from savevm.channel import ChannelError
from savevm.migration.settings import Settings
from savevm.transport import Address, Credentials, Socket, Tls, TlsError, Transport, open_output

__all__ = [
    "Patience",
    "askable",
    "both_ways",
    "connect",
    "credentials_of",
    "cut",
    "in_thread",
    "part",
    "words",
]

# Seconds for a connection to be made, and then for a handshake.
CONNECT: Final = 30.0


async def in_thread(make: Callable[[], Transport]) -> Transport:
    """What ``make`` gives, made in a thread; closed there if nobody waits for it any more."""
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, make)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:

        def drop(made: "asyncio.Future[Transport]") -> None:
            if not made.cancelled() and made.exception() is None:
                made.result().close()

        future.add_done_callback(drop)
        raise


def credentials_of(settings: Settings, known: Mapping[str, Credentials]) -> Credentials | None:
    """Those that the parameters name; raises ``OSError`` where nobody knows them."""
    name = settings.parameters["tls-creds"]
    if not name:
        return None
    if name not in known:
        raise TlsError(2, f"No TLS credentials with id {name!r}")
    found = known[name]
    hostname = settings.parameters["tls-hostname"]
    return Credentials(
        found.directory, found.verify_peer, hostname or found.hostname, found.password
    )


async def connect(
    address: Address,
    tls: Credentials | None,
    fds: MutableMapping[str, int] | None = None,
    timeout: float = CONNECT,
) -> Transport:
    """Operations that write to ``address`` and do not block; raises ``OSError``."""
    return await in_thread(
        lambda: open_output(address, tls=tls, fds=fds, timeout=timeout, blocking=False)
    )


class Patience:
    """Waits for a descriptor where it takes little: for up to 1 ms, without the event loop.

    That saves its detour where nothing else needs the processor, for which ``turn`` gives up the
    processor once a millisecond.
    """

    MOMENT: Final = 0.001
    GATHERED: Final = 0.0001

    def __init__(self, fd: int, *, writing: bool) -> None:
        self._poll: Final = select.poll()
        if fd >= 0:
            self._poll.register(fd, select.POLLOUT if writing else select.POLLIN)
        self._since = time.monotonic()

    async def turn(self) -> None:
        """Let others run, if they have not for a while."""
        if time.monotonic() - self._since > self.MOMENT:
            await asyncio.sleep(0)
            self._since = time.monotonic()

    def ready(self) -> bool:
        """Whether the descriptor is ready within a moment."""
        # Else the other side wakes this one for each of its packets, which costs it more than the bytes.
        time.sleep(self.GATHERED)
        return bool(self._poll.poll(1000 * self.MOMENT))


def both_ways(transport: Transport) -> bool:
    """Whether there is a way back."""
    return isinstance(transport, Socket | Tls)


def askable(address: Address) -> bool:
    """Whether a destination can be connected to once more."""
    return address.scheme in ("tcp", "unix")


def cut(transport: Transport) -> None:
    """End a connection at once; who waits on it is told."""
    if isinstance(transport, Socket | Tls):
        transport.shutdown()


def words(error: Exception, transport: Transport | None = None) -> str:
    """What went wrong, in one line for people; ``transport`` may know more than its channel."""
    if isinstance(error, ChannelError):
        return getattr(transport, "reason", "") or str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


async def part(transport: Transport) -> int:
    """Close, which may take its time; as ``Transport.close``."""
    return await asyncio.shield(asyncio.to_thread(transport.close))
