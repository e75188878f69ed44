"""A side, or the connection, is killed at random moments: afterwards exactly one machine runs."""

import asyncio
import multiprocessing
import os
import random
import signal
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from movers import Mover, incoming, living, outgoing, told
from wires import no_hang  # noqa: F401

from savevm.cli.demo import guest
from savevm.cli.processes import OURS, Machine, MachineError
from savevm.migration import outgoing as out

PAGES = 512
ROUNDS = 200


class Proxy:
    """Between a source and its destination: cuts the first connection behind ``budget`` bytes.

    ``back``: counts what comes back, not what goes there.  ``silent``: says nothing about it.
    """

    def __init__(self, port: int, budget: int, *, back: bool, reset: bool, silent: bool) -> None:
        self.port = port
        self.budget = budget
        self.back = back
        self.reset = reset
        self.silent = silent
        self.connections = 0
        self.cut = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"tcp:127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = self.connections == 0
        self.connections += 1
        there, onward = await asyncio.open_connection("127.0.0.1", self.port)
        ways = [(reader, onward, not self.back and first), (there, writer, self.back and first)]
        tasks = [asyncio.create_task(self._pump(*way)) for way in ways]
        self._tasks |= set(tasks)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self.cut and first and self.silent:
            await asyncio.wait(tasks)
        for task in tasks:
            if not self.cut:
                await task
            task.cancel()
        for side in (writer, onward):
            if self.reset and self.cut:
                side.transport.abort()
            side.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool
    ) -> None:
        try:
            while data := await reader.read(16384):
                if counted:
                    data = data[: self.budget]
                    self.budget -= len(data)
                writer.write(data)
                await writer.drain()
                if counted and not self.budget:
                    self.cut = True
                    if self.silent:
                        await asyncio.Event().wait()
                    return
            writer.write_eof()
        except OSError:
            pass


async def through(proxy: Proxy, budget: int) -> tuple[Mover, Mover, Any, Any]:
    """A migration through ``proxy``; source, destination, and how each of them ended."""
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")
    coming = incoming(destination)
    coming.open("tcp:127.0.0.1:0")
    assert coming.address is not None
    proxy.port = coming.address.port
    arriving = asyncio.create_task(coming.run())
    async with living(source, destination), proxy as address:
        source.work(100)
        going = outgoing(source, told("return-path", max_bandwidth=0))
        await going.run(address)
        if destination.running or going.status == "completed":
            assert await arriving
        await asyncio.sleep(0.002)
    arriving.cancel()
    await asyncio.gather(arriving, return_exceptions=True)
    await coming.close()
    return source, destination, going, coming


def exactly_one(source: Mover, destination: Mover, going: Any) -> str:
    """Which one runs; what it has is whole."""
    assert source.running != destination.running, (source.runstate, destination.runstate)
    assert (going.status == "completed") == destination.running
    (source if source.running else destination).check()
    if destination.running:
        assert source.runstate == "postmigrate"
        assert (destination.sweep, destination.page) >= (source.sweep, source.page)
        return "destination"
    assert going.error
    return "source"


def test_connection_cut_anywhere() -> None:
    """The last bytes are those that matter: half of the cuts are there, or in what comes back."""
    rng = random.Random(4)
    size = asyncio.run(_size())
    ran: Counter[str] = Counter()

    async def rounds() -> None:
        for number in range(ROUNDS):
            kind = number % 4
            budget = rng.randrange(1, size) if kind < 2 else rng.randrange(size - 2000, size + 1)
            back = kind == 3
            if back:
                budget = rng.randrange(1, 25)
            proxy = Proxy(0, budget, back=back, reset=bool(number & 4), silent=False)
            source, destination, going, _ = await through(proxy, budget)
            ran[exactly_one(source, destination, going)] += 1

    asyncio.run(rounds())
    assert ran["source"] > ROUNDS // 4
    assert ran["destination"] > ROUNDS // 20


async def _size() -> int:
    """Bytes of a typical stream."""
    proxy = Proxy(0, 1 << 40, back=False, reset=False, silent=False)
    going = (await through(proxy, 0))[2]
    assert going.status == "completed"
    return int(going.statistics()["ram"]["transferred"])


def test_silence_behind_the_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing more is asked."""
    monkeypatch.setattr(out, "_WORD", 0.2)
    monkeypatch.setattr(out, "_STALL", 0.2)
    rng = random.Random(5)
    size = asyncio.run(_size())
    ran: Counter[str] = Counter()

    async def rounds() -> None:
        for number in range(20):
            back = bool(number & 1)
            budget = rng.randrange(17, 25) if back else rng.randrange(size // 2, size * 3 // 4)
            proxy = Proxy(0, budget, back=back, reset=False, silent=True)
            source, destination, going, _ = await through(proxy, budget)
            ran[exactly_one(source, destination, going)] += 1

    asyncio.run(rounds())
    assert ran["source"]
    assert ran["destination"]


def test_cancelled_at_any_time() -> None:
    rng = random.Random(6)
    ended: Counter[str] = Counter()

    async def rounds() -> None:
        for number in range(ROUNDS):
            source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")
            if number % 3 == 0:
                source.set_runstate("paused")
            coming = incoming(destination)
            coming.open("tcp:127.0.0.1:0")
            arriving = asyncio.create_task(_arrive(coming))
            going = outgoing(source, told("return-path", max_bandwidth=100 << 20))
            async with living(source, destination):
                source.work(300)
                task = asyncio.create_task(going.run(str(coming.address)))
                for _ in range(rng.choice((rng.randrange(8), rng.randrange(60)))):
                    await asyncio.sleep(rng.choice((0, 0, 0.001)))
                going.cancel()
                await asyncio.wait_for(task, 10)
                ended[going.status] += 1
                if going.status == "completed":
                    await arriving
                    assert (source.runstate, destination.runstate) == (
                        "postmigrate",
                        "paused" if number % 3 == 0 else "running",
                    )
                    destination.check()
                else:
                    assert going.status == "cancelled"
                    assert source.runstate == ("paused" if number % 3 == 0 else "running")
                    assert destination.runstate == "inmigrate"
                    source.check()
                    # Nothing of it is left: the next one goes through.
                    if number % 5 == 1:
                        while going.status != "completed":
                            # At first the destination may still be at the one before.
                            going = outgoing(source, told("return-path"))
                            await asyncio.wait_for(going.run(str(coming.address)), 10)
                        await arriving
                        destination.check()
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)
            await coming.close()

    asyncio.run(rounds())
    assert ended["cancelled"] > ROUNDS // 4


async def _arrive(coming: Any) -> None:
    while not await coming.run():
        pass


# Processes


def side(there: Connection, port: int, *, source: bool) -> None:
    """One side, in a process of its own: tells what becomes of it, and whether its RAM is right."""

    async def live() -> None:
        if source:
            mover = Mover(PAGES)
            mover.work(300)
            there.send("ready")
            there.recv()
            going = outgoing(mover, told("return-path", max_bandwidth=100 << 20))
            async with living(mover):
                await going.run(f"tcp:127.0.0.1:{port}")
                await asyncio.sleep(0.002)
            error = going.error
        else:
            mover = Mover(PAGES, runstate="inmigrate")
            coming = incoming(mover)
            coming.open("tcp:127.0.0.1:0")
            assert coming.address is not None
            there.send(coming.address.port)
            async with living(mover):
                await coming.run()
                await asyncio.sleep(0.002)
            error = coming.error
        if mover.running:
            mover.check()
        there.send((mover.runstate, mover.sweep, mover.page, error))
        # It goes on for as long as it is not killed, as a destination answers for a while.
        await asyncio.sleep(60)

    try:
        asyncio.run(live())
    finally:
        os._exit(0)


class Side:
    def __init__(self, *, source: bool, port: int = 0) -> None:
        self.here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=side, args=(there, port), kwargs={"source": source})
        self.process.start()
        there.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def told(self) -> tuple[str, int, int, str] | None:
        """What it has told, within some seconds; None if it was killed before."""
        assert self.here.poll(30), "hangs"
        try:
            answer: tuple[str, int, int, str] = self.here.recv()
        except (EOFError, ConnectionResetError):
            return None
        return answer


def test_process_killed_at_any_time() -> None:
    """Killed with SIGKILL, by turns the source and the destination."""
    rng = random.Random(7)
    found: Counter[tuple[str, str]] = Counter()
    for number in range(ROUNDS):
        destination = Side(source=False)
        port = destination.here.recv()
        source = Side(source=True, port=port)
        source.here.recv()
        victim, other = (source, destination) if number & 1 else (destination, source)
        try:
            source.here.send("go")
            signal.sigtimedwait([], rng.uniform(0, 0.045))
            victim.kill()
            last = victim.told() if victim.here.poll() else None
            survivor = other.told() if number & 1 == 0 or _begun(other) else None
            name = "source" if victim is source else "destination"
            if survivor is None:
                found[name, "nobody"] += 1
                continue
            state = survivor[0]
            found[name, state] += 1
            if victim is destination:
                # It had the machine and said so, or it had not.
                assert state in ("running", "postmigrate"), survivor
                if last is not None and last[0] == "running":
                    assert state == "postmigrate"
            else:
                assert state in ("running", "inmigrate")
                if last is not None:
                    assert (last[0], state) == ("postmigrate", "running"), (last, survivor)
        finally:
            source.kill()
            destination.kill()
    assert found["destination", "running"] > 10, found
    assert found["source", "inmigrate"] + found["source", "nobody"] > 10, found
    assert found["source", "running"] + found["destination", "postmigrate"] > 5, found


def _begun(destination: Side) -> bool:
    """Whether a stream came at all: who was killed before it connected leaves nothing to tell."""
    return destination.here.poll(0.5)


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_machine_killed(victim: str, tmp_path: Path) -> None:
    """The real thing: processes of `savevm machine`, with a guest that prints."""
    rng = random.Random(victim)

    async def killed(delay: float) -> str:
        with guest(size=1 << 20) as options:
            board = ("-m", "4M", *options)
            async with (
                Machine.started(OURS, tmp_path, *board) as source,
                Machine.started(
                    OURS, tmp_path, *board, "-incoming", "tcp:127.0.0.1:0"
                ) as destination,
            ):
                await source.capabilities("return-path")
                await source.execute("migrate-set-parameters", max_bandwidth=20 << 20)
                where = (await destination.execute("query-migrate"))["socket-address"][0]
                await source.execute("migrate", uri=f"tcp:127.0.0.1:{where['port']}")
                await asyncio.sleep(delay)
                await (source if victim == "source" else destination).end()
                if victim == "source":
                    try:
                        await asyncio.sleep(0.5)
                        if (await destination.execute("query-migrate"))["status"] == "setup":
                            # Nothing ever came: it goes on waiting.
                            return "nobody"
                        while (await _status(destination)) == "inmigrate":
                            await asyncio.sleep(0.01)
                    except MachineError:
                        # It had not everything: it ends, as a QEMU does.
                        assert destination.process.returncode == 1
                        return "nobody"
                    assert await _status(destination) == "running"
                    return await _prints(destination)
                while (await source.execute("query-migrate"))["status"] not in out.ENDED:
                    await asyncio.sleep(0.01)
                status = (await source.execute("query-migrate"))["status"]
                if status == "completed":
                    assert await _status(source) == "postmigrate"
                    return "nobody"
                assert (status, await _status(source)) == ("failed", "running")
                return await _prints(source)

    found = {asyncio.run(asyncio.wait_for(killed(rng.uniform(0, 0.4)), 60)) for _ in range(6)}
    assert found <= {"nobody", "prints"}


async def _status(machine: Machine) -> str:
    return str((await machine.execute("query-status"))["status"])


async def _prints(machine: Machine) -> str:
    before = machine.letters()
    while machine.letters() == before:
        await asyncio.sleep(0.01)
    return "prints"
