"""Live migration from one machine to another, in one event loop."""

import asyncio
import gc
import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from movers import Mover, incoming, living, outgoing, told
from qemus import Qemu
from test_tls import authority, make  # noqa: F401
from wires import no_hang, nothing_left_open  # noqa: F401

from savevm.channel import Channel, ChannelError
from savevm.errors import StreamError
from savevm.migration import incoming as into
from savevm.migration import outgoing as out
from savevm.migration.incoming import Incoming
from savevm.migration.outgoing import Outgoing
from savevm.migration.return_path import message, question
from savevm.savevm import CannotExpressError, descriptor
from savevm.stream.events import Command, Section
from savevm.stream.reader import Reader
from savevm.transport import Credentials, Socket
from savevm_spec.constants import RETURN_PONG, RETURN_SHUT

PAGES = 512


async def over(
    source: Mover,
    destination: Mover,
    uri: str,
    *capabilities: str,
    coming: Incoming | None = None,
    **options: Any,
) -> tuple[Outgoing, Incoming]:
    """Migrate; what became of both."""
    coming = coming or incoming(destination)
    coming.open(uri)
    arriving = asyncio.create_task(coming.run())
    going = outgoing(source, told(*capabilities, max_bandwidth=20 << 20), **options)
    async with living(source, destination):
        await going.run(str(coming.address))
        await arriving
        await asyncio.sleep(0.01)
    await coming.close()
    return going, coming


def moved(source: Mover, destination: Mover, going: Outgoing) -> None:
    """The guest runs at the destination, as far as it had come."""
    assert (going.status, going.error) == ("completed", "")
    assert (source.runstate, destination.runstate) == ("postmigrate", "running")
    assert (destination.sweep, destination.page) > (source.sweep, source.page)
    destination.check()


@pytest.mark.parametrize("capabilities", [(), ("return-path",)], ids=["", "return path"])
@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_while_the_guest_runs(scheme: str, capabilities: tuple[str, ...], tmp_path: Path) -> None:
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")
    uri = {"tcp": "tcp:127.0.0.1:0", "unix": f"unix:{tmp_path}/socket"}[scheme]
    source.work(3 * PAGES)
    going, _ = asyncio.run(over(source, destination, uri, *capabilities))
    moved(source, destination, going)
    statistics = going.statistics()
    passes = sum(event == "MIGRATION_PASS" for event, _ in source.events)
    assert statistics["ram"]["dirty-sync-count"] == 1 + passes
    assert statistics["ram"]["normal"] + statistics["ram"]["duplicate"] > PAGES
    assert [event for event in source.events if event[0] != "MIGRATION_PASS"] == [
        ("MIGRATION", {"status": "setup"}),
        ("MIGRATION", {"status": "active"}),
        ("STOP", {}),
        ("MIGRATION", {"status": "device"}),
        ("MIGRATION", {"status": "completed"}),
    ]
    assert ("MIGRATION_PASS", {"pass": 2}) in source.events
    assert destination.events == [
        ("MIGRATION", {"status": "setup"}),
        ("MIGRATION", {"status": "active"}),
        ("RESUME", {}),
        ("MIGRATION", {"status": "completed"}),
    ]


@pytest.mark.parametrize("returns", [False, True])
def test_over_descriptors_that_were_handed_over(returns: bool) -> None:
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")
    ours, theirs = socket.socketpair() if returns else os.pipe()

    async def both() -> Outgoing:
        fds = [end if isinstance(end, int) else end.detach() for end in (ours, theirs)]
        coming = incoming(destination, fds={"from": fds[0]})
        coming.open("fd:from")
        arriving = asyncio.create_task(coming.run())
        capabilities = ("return-path",) if returns else ()
        going = outgoing(source, told(*capabilities), fds={"there": fds[1]})
        async with living(source, destination):
            await going.run("fd:there")
            assert await arriving, coming.error
            await asyncio.sleep(0.01)
        return going

    moved(source, destination, asyncio.run(both()))


@pytest.mark.parametrize("way", ["file", "exec"])
def test_through_a_file(way: str, tmp_path: Path) -> None:
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")
    path = tmp_path / "stream"
    there, back = (
        (f"exec:cat > {path}", f"exec:cat {path}") if way == "exec" else (f"file:{path}",) * 2
    )

    async def both() -> Outgoing:
        going = outgoing(source)
        coming = incoming(destination)
        async with living(source, destination):
            await going.run(there)
            coming.open(back)
            assert await coming.run(), coming.error
            await asyncio.sleep(0.01)
        return going

    moved(source, destination, asyncio.run(both()))


def test_secured(make: Callable[..., Path]) -> None:  # noqa: F811
    """Both ways through TLS, under load."""
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")
    credentials = {"tls0": Credentials(make("server", "client"))}
    settings = told("return-path", tls_creds="tls0")
    settings.parameters["tls-hostname"] = "localhost"

    async def both() -> Outgoing:
        coming = incoming(destination, settings, credentials=credentials)
        coming.open("tcp:127.0.0.1:0")
        arriving = asyncio.create_task(coming.run())
        going = outgoing(source, settings, credentials=credentials)
        async with living(source, destination):
            await going.run(str(coming.address))
            assert await arriving, (coming.error, going.error)
            await asyncio.sleep(0.01)
        await coming.close()
        return going

    moved(source, destination, asyncio.run(both()))


@pytest.mark.parametrize("autostart", [True, False])
@pytest.mark.parametrize("runstate", ["running", "paused"])
def test_runs_there_if_it_ran_here(runstate: str, autostart: bool) -> None:
    source = Mover(PAGES, runstate=runstate)
    source.work(700)
    destination = Mover(PAGES, runstate="inmigrate")
    coming = incoming(destination, autostart=autostart)
    going, _ = asyncio.run(over(source, destination, "tcp:127.0.0.1:0", coming=coming))
    assert going.status == "completed"
    assert destination.running == (autostart and runstate == "running")
    assert destination.runstate in ("running", "paused")
    destination.check()


def test_goes_on_until_the_guest_is_slow_enough() -> None:
    """A guest that writes faster than its pages are sent runs on; a longer downtime lets it go."""
    source, destination = Mover(PAGES, pace=200), Mover(PAGES, runstate="inmigrate")
    source.work(PAGES)

    async def both() -> Outgoing:
        coming = incoming(destination)
        coming.open("tcp:127.0.0.1:0")
        arriving = asyncio.create_task(coming.run())
        settings = told(max_bandwidth=20 << 20, downtime_limit=1)
        going = outgoing(source, settings)
        async with living(source, destination):
            migration = asyncio.create_task(going.run(str(coming.address)))
            while going.statistics().get("ram", {}).get("dirty-sync-count", 0) < 4:
                await asyncio.sleep(0.01)
            statistics = going.statistics()
            assert (going.status, source.running) == ("active", True)
            assert statistics["expected-downtime"] > 1
            assert statistics["ram"]["dirty-pages-rate"] > 0
            settings.set_parameters({"downtime-limit": 100_000})
            await migration
            assert await arriving
            await asyncio.sleep(0.01)
        await coming.close()
        return going

    moved(source, destination, asyncio.run(both()))


def test_waits_before_the_switchover() -> None:
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")

    async def both() -> Outgoing:
        coming = incoming(destination)
        coming.open("tcp:127.0.0.1:0")
        arriving = asyncio.create_task(coming.run())
        going = outgoing(source, told("return-path", "pause-before-switchover"))
        with pytest.raises(out.MigrationError):
            going.go_on()
        async with living(source, destination):
            migration = asyncio.create_task(going.run(str(coming.address)))
            while going.status != "pre-switchover":
                await asyncio.sleep(0.001)
            assert source.runstate == "finish-migrate"
            going.go_on()
            while going.status != "device":
                await asyncio.sleep(0)
            statistics = going.statistics()
            assert (statistics["status"], statistics["ram"]["remaining"]) == ("device", 0)
            await migration
            assert await arriving
            await asyncio.sleep(0.01)
        await coming.close()
        return going

    moved(source, destination, asyncio.run(both()))


# What goes wrong


def stays(source: Mover, going: Outgoing, *, runstate: str = "running") -> None:
    """It is as it was before."""
    assert going.status == "failed"
    assert going.error
    assert going.statistics()["error-desc"] == going.error
    assert source.runstate == runstate
    assert source.block.dirty is None
    source.check()


@pytest.mark.parametrize(
    "uri",
    [
        "tcp:127.0.0.1:1",
        "unix:/nonexistent/socket",
        "file:/nonexistent/stream",
        "fd:nobody",
        "rdma:127.0.0.1:1",
        "tcp:127.0.0.1",
        "exec:false",
        "exec:head -c 100000 >/dev/null",
        "exec:cat >/dev/null; exit 3",
    ],
)
@pytest.mark.parametrize("runstate", ["running", "paused"])
def test_source_goes_on(uri: str, runstate: str) -> None:
    source = Mover(PAGES, runstate=runstate)
    source.work(PAGES)

    async def go() -> Outgoing:
        going = outgoing(source, told(max_bandwidth=100 << 20))
        async with living(source):
            await going.run(uri)
            await asyncio.sleep(0.01)
        return going

    stays(source, asyncio.run(go()), runstate=runstate)


def test_return_path_needs_a_way_back() -> None:
    source = Mover(PAGES)
    going = outgoing(source, told("return-path"))
    asyncio.run(going.run("exec:cat >/dev/null"))
    stays(source, going)
    assert "return path" in going.error


def test_a_state_that_cannot_be_expressed() -> None:
    """It is found when all else has been sent; the machine runs on here."""
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")
    describe = source.registry

    def registry(*arguments: Any) -> Any:
        registry = describe(*arguments)

        def save() -> Any:
            raise CannotExpressError("vtype has no place in QEMU 5.2")

        registry.entries[1].save = save
        return registry

    source.registry = registry  # type: ignore[method-assign]

    async def both() -> tuple[Outgoing, Incoming]:
        coming = incoming(destination)
        coming.open("tcp:127.0.0.1:0")
        arriving = asyncio.create_task(coming.run())
        going = outgoing(source, told("return-path"))
        async with living(source, destination):
            await going.run(str(coming.address))
            assert not await arriving
            await asyncio.sleep(0.01)
        await coming.close()
        return going, coming

    going, _ = asyncio.run(both())
    stays(source, going)
    assert "vtype" in going.error
    assert destination.runstate == "inmigrate"


def test_destination_refuses_then_takes() -> None:
    """What was wrong is said on both sides; the same destination takes the next one."""
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")

    async def both() -> Outgoing:
        coming = incoming(destination)
        coming.open("tcp:127.0.0.1:0")
        wrong = Mover(PAGES)
        wrong.page = -5
        wrong.pace = 0
        arriving = asyncio.create_task(coming.run())
        going = outgoing(wrong, told("return-path"))
        await going.run(str(coming.address))
        assert not await arriving
        assert (going.status, coming.status) == ("failed", "failed")
        assert "could not load" in going.error
        assert wrong.running
        assert isinstance(coming.cause, StreamError)
        assert coming.cause.rule == "section.state.refused"
        assert destination.runstate == "inmigrate"
        arriving = asyncio.create_task(coming.run())
        going = outgoing(source, told("return-path"))
        async with living(source, destination):
            await going.run(str(coming.address))
            assert await arriving
            await asyncio.sleep(0.01)
        await coming.close()
        return going

    moved(source, destination, asyncio.run(both()))


def test_address_in_use() -> None:
    async def both() -> None:
        first, second = (incoming(Mover(1, runstate="inmigrate")) for _ in range(2))
        first.open("tcp:127.0.0.1:0")
        assert not await second.run(str(first.address))
        assert second.status == "failed"
        await first.close()

    asyncio.run(both())


def test_others_who_connect() -> None:
    """Who says nothing, or goes at once, is not waited for; a second stream is turned away."""
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")

    async def both() -> Outgoing:
        coming = incoming(destination)
        coming.open("tcp:127.0.0.1:0")
        assert coming.address is not None
        place = ("127.0.0.1", coming.address.port)
        silent = socket.create_connection(place)
        socket.create_connection(place).close()
        arriving = asyncio.create_task(coming.run())
        going = outgoing(source, told("return-path", max_bandwidth=20 << 20))
        async with living(source, destination):
            migration = asyncio.create_task(going.run(str(coming.address)))
            while coming.status != "active":
                await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection(*place)
            writer.write(b"QEVM\0\0\0\3\7\0\0\0\5mover")
            assert await reader.read() == b""
            writer.close()
            await migration
            assert await arriving
            await asyncio.sleep(0.01)
        silent.close()
        await coming.close()
        return going

    moved(source, destination, asyncio.run(both()))


@pytest.mark.parametrize("secured", [False, True])
def test_many_who_say_nothing(
    secured: bool,
    make: Callable[..., Path],  # noqa: F811
) -> None:
    """They neither keep the stream out, nor take more descriptors than a few."""
    source, destination = Mover(PAGES), Mover(PAGES, runstate="inmigrate")
    credentials = {"tls0": Credentials(make("server", "client"))} if secured else {}
    settings = told("return-path", tls_creds="tls0" if secured else "")

    async def both() -> Outgoing:
        coming = incoming(destination, settings, credentials=credentials)
        coming.open("tcp:127.0.0.1:0")
        assert coming.address is not None
        arriving = asyncio.create_task(coming.run())
        before = len(os.listdir("/proc/self/fd"))
        silent = []
        for _ in range(200):
            silent.append(await asyncio.open_connection("127.0.0.1", coming.address.port))
        await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) - before - len(silent) < 100
        assert await asyncio.wait_for(silent[0][0].read(), 10) == b""
        going = outgoing(source, settings, credentials=credentials)
        async with living(source, destination):
            await asyncio.wait_for(going.run(str(coming.address)), 20)
            assert await arriving
            await asyncio.sleep(0.01)
        for _, writer in silent:
            writer.close()
        await coming.close()
        return going

    moved(source, destination, asyncio.run(both()))


@pytest.mark.parametrize("says", [b"", b"QEVM"])
def test_nobody_is_waited_for_for_ever(says: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(into, "_GREETING", 0.05)

    async def connect() -> bytes:
        coming = incoming(Mover(1, runstate="inmigrate"))
        coming.open("tcp:127.0.0.1:0")
        assert coming.address is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", coming.address.port)
        writer.write(says)
        end = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await coming.close()
        return end

    assert asyncio.run(connect()) == b""


# What is on the wire


@pytest.mark.parametrize("release", ["5.2", "7.2", "10.0", "11.1"])
def test_commands(release: str, tmp_path: Path) -> None:
    source = Mover(16)
    settings = told(x_release=release)
    asyncio.run(outgoing(source, settings).run(f"file:{tmp_path}/stream"))
    reader = Reader()
    events = [*reader.feed((tmp_path / "stream").read_bytes()), *reader.finish()]
    assert reader.error is None
    interesting = [
        event.number if isinstance(event, Command) else event.type
        for event in events
        if isinstance(event, Command | Section)
    ]
    start, part, end, full, switchover = 1, 2, 3, 4, 11
    interesting = [kind for kind in interesting if kind != part]
    told_of_it = [switchover] if release in ("10.0", "11.1") else []
    assert interesting == [start, *told_of_it, end, full]


def test_return_path_on_the_wire() -> None:
    """The words of a destination that is not ours: PONG to the number, then SHUT."""
    source = Mover(16)
    ours, theirs = socket.socketpair()
    words: list[Command] = []

    async def peer() -> None:
        transport = Socket(ours, "peer", blocking=False)
        heard, says = Channel(transport, blocking=False), Channel(transport, blocking=False)
        stream = bytearray()
        answered = False
        while not stream.endswith(b"}]}"):
            await descriptor(heard, writing=False)
            stream += heard.read_chunk()
            if not answered and (at := stream.find(b"\x08\0\2\0\4")) >= 0:
                says.write(b"\0\2\0\4" + stream[at + 5 : at + 9])
                says.flush()
                answered = True
        reader = Reader()
        events = [*reader.feed(bytes(stream)), *reader.finish()]
        words.extend(event for event in events if isinstance(event, Command))
        assert going.status != "completed"
        says.write(struct.pack(">HHI", 1, 4, 0))
        says.flush()
        while heard.read_chunk() or not heard.end.value.startswith("clean"):
            await asyncio.sleep(0.001)
        transport.close()

    async def both() -> None:
        async with living(source):
            await asyncio.gather(going.run("fd:there"), peer())

    going = outgoing(source, told("return-path"), fds={"there": theirs.detach()})
    asyncio.run(both())
    assert going.status == "completed"
    assert [(word.number, len(word.payload)) for word in words] == [(1, 0), (2, 4), (11, 0)]


@pytest.mark.parametrize(
    "says", [b"\0\1\0\4\0\0\0\1", b"\0\3\0\4\0\0\0\0", b"\0\1\2\4", b"\0\1\0\0", b"", b"\0"]
)
def test_what_a_destination_must_not_say(says: bytes) -> None:
    source = Mover(PAGES)
    ours, theirs = socket.socketpair()
    ours.sendall(says)
    ours.shutdown(socket.SHUT_WR)

    async def go() -> Outgoing:
        going = outgoing(source, told("return-path"), fds={"there": theirs.detach()})
        async with living(source):
            await going.run("fd:there")
            await asyncio.sleep(0.01)
        return going

    stays(source, asyncio.run(go()))
    ours.close()


def test_statistics_are_those_of_qemu(tmp_path: Path) -> None:
    source, destination = Mover(16), Mover(16, runstate="inmigrate")
    going, coming = asyncio.run(over(source, destination, "tcp:127.0.0.1:0"))
    with Qemu(tmp_path) as qemu:
        qemu.execute("migrate", uri="exec:cat >/dev/null")
        theirs = qemu.migration()
    ours = going.statistics()
    # It had more counters for a while, and has had more and more.
    assert set(theirs) <= set(ours)
    assert set(theirs["ram"]) - {"skipped"} <= set(ours["ram"])
    for name, value in theirs["ram"].items():
        assert type(ours["ram"].get(name, value)) is type(value), name
    assert coming.statistics()["status"] == "completed"


# What comes in must not be trusted


async def load(stream: bytes, destination: Mover, path: Path) -> Incoming:
    path.write_bytes(stream)
    coming = incoming(destination, autostart=False)
    await coming.run(f"file:{path}")
    return coming


def test_hostile_streams(tmp_path: Path) -> None:
    """Cut, or with bits flipped: refused with a rule, and the machine waits; or as good as before."""
    source = Mover(8)
    source.work(20)
    asyncio.run(outgoing(source).run(f"file:{tmp_path}/good"))
    good = (tmp_path / "good").read_bytes()
    rng = random.Random(3)
    tail = good.rindex(b"\3cpu")
    streams = [good[:cut] for cut in range(0, len(good), 997)]
    streams += [good[:cut] for cut in range(tail - 20, len(good) - 1)]
    for _ in range(1500):
        bad = bytearray(good)
        at = rng.choice(
            (rng.randrange(len(good)), rng.randrange(200), rng.randrange(tail, len(good)))
        )
        bad[at] ^= 1 << rng.randrange(8)
        streams.append(bytes(bad))
    rules = set()

    async def every() -> None:
        for stream in streams:
            destination = Mover(8, runstate="inmigrate")
            coming = await load(stream, destination, tmp_path / "stream")
            assert not destination.running
            if coming.status == "completed":
                continue
            assert (coming.status, destination.runstate) == ("failed", "inmigrate")
            assert isinstance(coming.cause, StreamError | ChannelError)
            if isinstance(coming.cause, StreamError):
                rules.add(coming.cause.rule)
            assert (destination.page, destination.sweep) == (0, 0)

    asyncio.run(every())
    assert len(rules) > 20, rules


@pytest.mark.parametrize("number", [3, 4, 5, 8, 9])
def test_commands_for_what_is_not_there(number: int, tmp_path: Path) -> None:
    source, destination = Mover(1), Mover(1, runstate="inmigrate")
    asyncio.run(outgoing(source).run(f"file:{tmp_path}/good"))
    good = (tmp_path / "good").read_bytes()
    at = 8 + 5 + len("mover")
    bad = good[:at] + struct.pack(">BHH", 8, number, 0) + good[at:]
    coming = asyncio.run(load(bad, destination, tmp_path / "stream"))
    assert isinstance(coming.cause, StreamError)
    assert coming.cause.rule == "command.unsupported"
    assert coming.cause.offset == at + 1


def test_who_asks_and_stays_is_left_without_a_complaint(tmp_path: Path) -> None:
    complaints: list[dict[str, Any]] = []

    def asks(place: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(60)
            asking.connect(place)
            asking.sendall(question(0x5312_3456))
            return b"".join(iter(lambda: asking.recv(100), b""))

    async def answer() -> bytes:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        coming = incoming(Mover(PAGES, runstate="inmigrate"))
        coming.open(f"unix:{tmp_path / 'in'}")
        said = await asyncio.to_thread(asks, str(tmp_path / "in"))
        await asyncio.sleep(0.1)
        # Of a task that failed unheard, it tells when the task goes.
        gc.collect()
        await coming.close()
        return said

    assert asyncio.run(answer()) == message(RETURN_PONG, 0x5312_3456) + message(RETURN_SHUT, 1)
    assert complaints == []
