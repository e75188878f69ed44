"""The transports, over real files, pipes, sockets and commands, and with a real QEMU behind them."""

import asyncio
import errno
import os
import random
import resource
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest
from qemus import Qemu, laden, stream_of_qemu, whole  # noqa: F401
from wires import carry, no_hang, nothing_left_open  # noqa: F401

from savevm.channel import Channel, End
from savevm.transport import (
    Address,
    MemoryInput,
    MemoryOutput,
    Transport,
    listen,
    open_input,
    open_output,
    receive_fd,
    send_fd,
)

STREAM = b"QEVM" + random.Random(1).randbytes(300_000)
LONG = random.Random(2).randbytes(5 << 20)


def read_all(operations: Transport) -> bytes:
    """All of an input, which has to end cleanly and close well."""
    channel = Channel(operations)
    data = b"".join(iter(channel.read_chunk, b""))
    assert (channel.error, channel.end) == (0, End.CLEAN), operations.reason
    assert channel.close() == 0, operations.reason
    return data


def write_all(operations: Transport, data: bytes) -> None:
    channel = Channel(operations)
    assert channel.write_buffers([data[:10], data[10:20_000], data[20_000:]], len(data)) > 0
    assert channel.close() == 0, operations.reason


def together(*jobs: Callable[[], object]) -> list[object]:
    """What several functions return that wait on each other."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(60) for future in [pool.submit(job) for job in jobs]]


def ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here ({error}): tcp:[::1] is not tested")


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("file:/a/b", Address("file", "/a/b")),
        ("file:/a,offset=4096", Address("file", "/a", offset=4096)),
        ("file:/a,offset=0x1F", Address("file", "/a", offset=31)),
        ("file:/a,offset=1M", Address("file", "/a", offset=1 << 20)),
        ("file:/a,b:c", Address("file", "/a,b:c")),
        ("/a,offset=1", Address("file", "/a,offset=1")),
        ("a:b", Address("file", "a:b")),
        ("-", Address("standard", "-")),
        ("fd:7", Address("fd", "7")),
        ("fd:migration", Address("fd", "migration")),
        ("tcp:127.0.0.1:4444", Address("tcp", "127.0.0.1", 4444)),
        ("tcp:[::1]:0", Address("tcp", "::1")),
        ("tcp::4444", Address("tcp", "", 4444)),
        ("unix:/run/x:y", Address("unix", "/run/x:y")),
        ("exec:cat > 'a b'", Address("exec", "cat > 'a b'")),
    ],
)
def test_address(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file:",
        "file:,offset=1",
        "file:a,offset=",
        "file:a,offset=-1",
        "file:a,offset=1x",
        "file:a,offset=9223372036854775808",
        "file:a,offset=" + 5000 * "9",
        "file:a,offset=\u0661",
        "fd:",
        "tcp:",
        "tcp:host",
        "tcp:host:",
        "tcp:host:port",
        "tcp:host:65536",
        "tcp:::1:80",
        "tcp:[::1:80",
        "unix:",
        "exec:",
        "a\0b",
    ],
)
def test_bad_address(text: str) -> None:
    with pytest.raises(OSError, match="bad address") as raised:
        Address.parse(text)
    assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize("text", ["rdma:host:1", "vsock:1:2"])
def test_only_qemu_has(text: str) -> None:
    with pytest.raises(OSError, match=r"no transport") as raised:
        open_output(text)
    assert raised.value.errno == errno.ENOTSUP


# Files


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_all(open_output(str(path)), STREAM)
    assert path.read_bytes() == STREAM
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_all(open_input(f"file:{path}")) == STREAM


def test_file_behind_something_else(tmp_path: Path) -> None:
    path = tmp_path / "container"
    path.write_bytes(b"header" + 500_000 * b"x")
    path.chmod(0o640)
    write_all(open_output(f"file:{path},offset=6"), STREAM)
    assert path.read_bytes() == b"header" + STREAM
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert read_all(open_input(f"file:{path},offset=6")) == STREAM
    write_all(open_output(f"file:{path},offset=1M"), STREAM)
    assert path.read_bytes()[: 1 << 20] == (b"header" + STREAM).ljust(1 << 20, b"\0")
    assert read_all(open_input(f"file:{path},offset=1M")) == STREAM


def test_file_is_cut_off_when_opened(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"0123456789")
    assert open_output(f"file:{path},offset=4").close() == 0
    assert path.read_bytes() == b"0123"


def test_input_behind_the_end_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"0123")
    assert read_all(open_input(f"file:{path},offset=100")) == b""


def test_file_is_positioned(tmp_path: Path) -> None:
    path = tmp_path / "state"
    output = open_output(f"file:{path},offset=3")
    assert output.seekable
    channel = Channel(output)
    channel.write(b"length----data")
    assert channel.overwrite(6, b"0014") == 4
    channel.write(b" and more")
    assert channel.close() == 0
    assert path.read_bytes() == b"\0\0\0length0014data and more"
    source = open_input(f"file:{path},offset=3")
    assert source.get_bytes(4, 6) == b"0014"
    room = bytearray(6)
    assert source.get_buffer(memoryview(room), 0) == 6
    assert room == b"length"
    assert source.get_bytes(100, 23) == b""
    assert source.close() == 0


@pytest.mark.parametrize("opening", [open_input, open_output])
@pytest.mark.parametrize("name", ["missing/x", ".", "x" * 300])
def test_file_that_cannot_be_opened(
    tmp_path: Path, opening: Callable[[str], Transport], name: str
) -> None:
    with pytest.raises(OSError, match=str(tmp_path)) as raised:
        opening(f"file:{tmp_path}/{name}")
    wanted = {"missing/x": errno.ENOENT, ".": errno.EISDIR}
    assert raised.value.errno == wanted.get(name, errno.ENAMETOOLONG)


def test_a_full_device_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    output = open_output("/dev/full")
    assert not output.seekable
    assert output.put_buffer(memoryview(b"x"), 0) == -errno.ENOSPC
    assert output.put_buffers([b"x", b"y"], 0) == -errno.ENOSPC
    assert output.close() == 0


def test_file_too_large(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = open_output(str(tmp_path / "state"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        channel = Channel(output)
        assert channel.write(bytes(10_000)) == 10_000
        assert channel.write(bytes(30_000)) == -errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert channel.close() == -errno.EFBIG
    assert (tmp_path / "state").stat().st_size == 8192


def test_fifo(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError, match="offset") as raised:
        # Open for both, so that neither waits.
        together(
            lambda: open_output(f"file:{path},offset=1"), lambda: os.close(os.open(path, os.O_RDWR))
        )
    assert raised.value.errno == errno.ESPIPE
    data, _ = together(
        lambda: read_all(open_input(str(path))), lambda: write_all(open_output(str(path)), LONG)
    )
    assert data == LONG


# Descriptors


def test_pipe() -> None:
    readable, writable = os.pipe()
    data, _ = together(
        lambda: read_all(open_input(f"fd:{readable}")),
        lambda: write_all(open_output(f"fd:{writable}"), LONG),
    )
    assert data == LONG


def test_many_buffers_in_one_write() -> None:
    readable, writable = os.pipe()
    source, output = open_input(f"fd:{readable}"), open_output(f"fd:{writable}")
    pieces = [bytes((i % 256,)) for i in range(5000)]
    count = output.put_buffers(pieces, 0)
    assert 1000 <= count <= 5000
    assert source.get_bytes(5000, 0) == b"".join(pieces)[:count]
    assert output.put_buffers([memoryview(b"ab"), bytearray(b"c")], count) == 3
    assert source.get_bytes(5000, count) == b"abc"
    assert output.close() == source.close() == 0


def test_descriptor_by_name() -> None:
    readable, writable = os.pipe()
    table = {"in": readable, "out": writable}
    write_all(open_output("fd:out", fds=table), b"words")
    assert table == {"in": readable}
    assert read_all(open_input("fd:in", fds=table)) == b"words"
    with pytest.raises(FileNotFoundError, match="fd:in"):
        open_input("fd:in", fds=table)


def test_descriptor_that_does_not_fit() -> None:
    readable, writable = os.pipe()
    with pytest.raises(OSError, match="not open for writing"):
        open_output(f"fd:{readable}")
    with pytest.raises(OSError, match="not open for reading"):
        open_input(f"fd:{writable}")
    os.close(readable)
    os.close(writable)
    for number in (readable, 10**8, 10**30):
        with pytest.raises(OSError, match="not an open descriptor") as raised:
            open_input(f"fd:{number}")
        assert raised.value.errno == errno.EBADF


def test_file_handed_over_begins_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "state"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before ")
    output = open_output(f"fd:{os.dup(fd)}")
    assert output.seekable
    assert output.put_buffer(memoryview(b"state"), 0) == 5
    assert output.put_buffer(memoryview(b"S"), 0) == 1
    assert output.close() == 0
    os.write(fd, b" behind")
    assert path.read_bytes() == b"before State behind"
    os.lseek(fd, 7, os.SEEK_SET)
    source = open_input(f"fd:{os.dup(fd)}")
    assert source.get_bytes(5, 0) == b"State"
    assert source.close() == 0
    assert os.read(fd, 100) == b" behind"
    os.close(fd)


def test_what_appends_has_no_positions(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"before ")
    output = open_output(f"fd:{os.open(path, os.O_WRONLY | os.O_APPEND)}")
    assert not output.seekable
    write_all(output, STREAM)
    assert path.read_bytes() == b"before " + STREAM


def test_standard_streams_stay_open(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from savevm.channel import Channel\n"
        "from savevm.transport import open_input, open_output\n"
        "source, output = Channel(open_input('-')), Channel(open_output('-'))\n"
        "output.write(b''.join(iter(source.read_chunk, b'')))\n"
        "assert source.close() == output.close() == 0\n"
        "os.write(1, b' behind'); os.fstat(0)\n"
    )
    (tmp_path / "in").write_bytes(b"before state")
    command = (
        f"cd {tmp_path}; {{ head -c 0; {sys.executable} -c \"$CODE\"; echo ' end'; }} <in >out"
    )
    environment = {**os.environ, "CODE": code, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert os.spawnve(os.P_WAIT, "/bin/sh", ["sh", "-c", command], environment) == 0
    assert (tmp_path / "out").read_bytes() == b"before state behind end\n"


def test_descriptor_over_a_socket() -> None:
    ours, theirs = socket.socketpair()
    readable, writable = os.pipe()
    with ours, theirs:
        send_fd(ours, writable, b"migration")
        os.close(writable)
        fd, name = receive_fd(theirs)
        assert name == b"migration"
        assert not os.get_inheritable(fd)
        write_all(open_output("fd:migration", fds={name.decode(): fd}), b"words")
    assert read_all(open_input(f"fd:{readable}")) == b"words"


def test_anything_but_one_descriptor_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"none")
        with pytest.raises(OSError, match="one descriptor") as raised:
            receive_fd(theirs)
        assert raised.value.errno == errno.EBADMSG
        socket.send_fds(ours, [b"x"], [0, 1, 2])
        with pytest.raises(OSError, match="one descriptor") as raised:
            receive_fd(theirs)
        assert raised.value.errno == errno.EBADMSG
        ours.close()
        with pytest.raises(ConnectionResetError):
            receive_fd(theirs)


# Sockets


def test_tcp() -> None:
    with listen("tcp:127.0.0.1:0") as listening:
        assert listening.address.port > 0
        data, _ = together(
            lambda: read_all(listening.accept(timeout=30)),
            lambda: write_all(open_output(listening.address, timeout=30), LONG),
        )
    assert data == LONG


def test_tcp_other_way_round() -> None:
    """Who listens writes."""
    with listen("tcp:localhost:0") as listening:
        data, _ = together(
            lambda: read_all(open_input(listening.address, listening=False)),
            lambda: write_all(listening.accept(timeout=30), LONG),
        )
    assert data == LONG


def test_tcp_ipv6() -> None:
    ipv6()
    with listen("tcp:[::1]:0") as listening:
        assert str(listening.address) == f"tcp:[::1]:{listening.address.port}"
        data, _ = together(
            lambda: read_all(listening.accept(timeout=30)),
            lambda: write_all(open_output(str(listening.address)), LONG),
        )
    assert data == LONG


def test_tcp_on_every_address() -> None:
    ipv6()
    with listen("tcp::0") as listening:
        for host in ("127.0.0.1", "[::1]", ""):
            output = open_output(f"tcp:{host}:{listening.address.port}")
            data, _ = together(
                partial(read_all, listening.accept(timeout=30)), partial(write_all, output, STREAM)
            )
            assert data == STREAM


def test_address_is_free_again_at_once() -> None:
    with listen("tcp:127.0.0.1:0") as listening:
        address = listening.address
        output = open_output(address)
        accepted = listening.accept(timeout=30)
        assert accepted.close() == 0
        assert output.close() == 0
    with listen(address):
        pass


def test_one_connection_of_a_socket_that_listens(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"

    def write() -> None:
        while True:
            try:
                return write_all(open_output(address), STREAM)
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.01)

    data, _ = together(lambda: read_all(open_input(address, timeout=30)), write)
    assert data == STREAM
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["{}/socket", "@savevm-test-{}"])
def test_unix(tmp_path: Path, target: str) -> None:
    if target.startswith("@") and sys.platform != "linux":
        pytest.skip("abstract names are Linux's")
    with listen("unix:" + target.format(tmp_path)) as listening:
        data, _ = together(
            lambda: read_all(listening.accept(timeout=30)),
            lambda: write_all(open_output(listening.address), LONG),
        )
    assert data == LONG
    assert list(tmp_path.iterdir()) == []


def test_unix_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listen(f"unix:{path}") as listening:
        with pytest.raises(OSError, match="in use"):
            listen(f"unix:{path}")
        write_all(open_output(f"unix:{path}"), b"still there")
        assert read_all(listening.accept()) == b"still there"
    path.write_text("a file")
    with pytest.raises(OSError, match="in use"):
        listen(f"unix:{path}")
    assert path.read_text() == "a file"


def test_unix_socket_of_another_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen(f"unix:{path}"):
        path.rename(tmp_path / "elsewhere")
        path.write_text("a file")
    assert path.read_text() == "a file"


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        ("unix:{}/none", FileNotFoundError, errno.ENOENT),
        ("unix:{}/" + 120 * "x", OSError, errno.ENAMETOOLONG),
        ("tcp:127.0.0.1:{port}", ConnectionRefusedError, errno.ECONNREFUSED),
        ("tcp:name.invalid:1", OSError, errno.EADDRNOTAVAIL),
        ("tcp:" + 70 * "x" + ":1", OSError, None),
    ],
)
def test_nobody_to_connect_to(
    tmp_path: Path, text: str, kind: type[OSError], number: int | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = text.format(tmp_path, port=port)
    with pytest.raises(kind) as raised:
        open_output(address, timeout=30)
    assert number in (None, raised.value.errno)
    assert raised.value.filename == address


@pytest.mark.parametrize("text", ["tcp:192.0.2.1:0", "unix:{}/none/x", "unix:{}/" + 120 * "x"])
def test_where_nobody_can_listen(tmp_path: Path, text: str) -> None:
    with pytest.raises(OSError, match=r"tcp:|unix:"):
        listen(text.format(tmp_path))


@pytest.mark.parametrize("text", ["-", "/x", "exec:true", "fd:0"])
def test_what_cannot_listen(text: str) -> None:
    with pytest.raises(OSError, match="listen"):
        listen(text)


def test_nobody_connects() -> None:
    with listen("tcp:127.0.0.1:0") as listening:
        with pytest.raises(TimeoutError, match="tcp:127") as raised:
            listening.accept(timeout=0.05)
        assert raised.value.errno == errno.ETIMEDOUT
        with pytest.raises(BlockingIOError):
            listening.accept(timeout=0)


def test_connecting_takes_too_long(tmp_path: Path) -> None:
    """No more fit into the backlog than one."""
    address = f"unix:{tmp_path}/socket"
    with listen(address, backlog=0):
        output = open_output(address)
        with pytest.raises(TimeoutError, match="unix:"):
            open_output(address, timeout=0.1)
        assert output.close() == 0


def pair(kind: str) -> tuple[Transport, Transport]:
    """The two ends of a connection."""
    if kind == "pipe":
        readable, writable = os.pipe()
        return open_input(f"fd:{readable}"), open_output(f"fd:{writable}")
    if kind == "unix":
        ours, theirs = socket.socketpair()
        return open_input(f"fd:{ours.detach()}"), open_output(f"fd:{theirs.detach()}")
    with listen("tcp:127.0.0.1:0") as listening:
        output = open_output(listening.address)
        return listening.accept(), output


KINDS = ("pipe", "unix", "tcp")


@pytest.mark.parametrize("kind", KINDS)
def test_reader_that_leaves(kind: str) -> None:
    source, output = pair(kind)
    assert source.close() == 0
    channel = Channel(output)
    while channel.write(LONG) > 0:
        pass
    assert channel.error in (-errno.EPIPE, -errno.ECONNRESET)
    assert channel.end is End.CLOSED
    assert output.reason
    assert channel.close() == channel.error


def test_writer_that_dies() -> None:
    """With a reset, as the end of a process gives a connection that has something to read."""
    with listen("tcp:127.0.0.1:0") as listening:
        source = open_input(listening.address, listening=False)
        accepted = listening.accept()
        with socket.socket(fileno=os.dup(accepted.fileno())) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            assert accepted.close() == 0
    channel = Channel(source)
    assert channel.read(1) == b""
    assert (channel.error, channel.end) == (-errno.ECONNRESET, End.CLOSED)
    channel.close()


def test_closing_over_unread_bytes_loses_nothing() -> None:
    """A peer may answer what nobody reads; that must not reset what it has still to read."""
    with listen("tcp:127.0.0.1:0") as listening:
        output = open_output(listening.address)
        source = listening.accept()
    assert source.put_buffer(memoryview(b"answer"), 0) == 6
    write_all(output, STREAM[:100_000])
    assert read_all(source) == STREAM[:100_000]


def test_shutdown_frees_who_waits() -> None:
    source, output = pair("tcp")
    channel = Channel(source)
    thread = threading.Thread(target=channel.read, args=(1,))
    thread.start()
    assert source.shutdown() == 0  # type: ignore[attr-defined]
    thread.join(30)
    assert not thread.is_alive()
    assert channel.end in (End.CLEAN, End.CLOSED)
    assert channel.close() == output.close() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_done_to_what_is_closed(kind: str) -> None:
    source, output = pair(kind)
    assert source.close() == output.close() == 0
    assert source.close() == output.close() == 0
    assert source.fileno() == output.fileno() == -1
    assert output.put_buffer(memoryview(b"x"), 0) == -errno.EBADF
    assert output.put_buffers([b"x"], 0) == -errno.EBADF
    assert source.get_buffer(memoryview(bytearray(1)), 0) == -errno.EBADF
    assert source.get_bytes(1, 0) == -errno.EBADF


# Without blocking


@pytest.mark.parametrize("kind", KINDS)
def test_not_now(kind: str) -> None:
    source, output = pair(kind)
    os.set_blocking(source.fileno(), False)
    os.set_blocking(output.fileno(), False)
    assert source.get_bytes(1, 0) == -errno.EAGAIN
    assert source.get_buffer(memoryview(bytearray(1)), 0) == -errno.EAGAIN
    sent = 0
    while (count := output.put_buffer(memoryview(LONG), sent)) > 0:
        sent += count
    assert count == -errno.EAGAIN
    assert output.put_buffers([LONG, LONG], sent) == -errno.EAGAIN
    # Nothing reads that.
    os.set_blocking(output.fileno(), True)
    assert source.close() == output.close() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_in_an_event_loop(kind: str) -> None:
    if kind == "tcp":
        with listen("tcp:127.0.0.1:0") as listening:
            output = open_output(listening.address, blocking=False)
            source = listening.accept(blocking=False)
    else:
        source, output = pair(kind)
        os.set_blocking(source.fileno(), False)
        os.set_blocking(output.fileno(), False)
    assert asyncio.run(carry(source, output, LONG)) == LONG


def test_commands_in_an_event_loop(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    source = open_input(f"exec:cat '{tmp_path}/fifo'; sleep 0.1", blocking=False)
    output = open_output(f"exec:sleep 0.1; cat > '{tmp_path}/fifo'", blocking=False)
    assert asyncio.run(carry(source, output, LONG)) == LONG


# Commands


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "a b"
    write_all(open_output(f"exec:gzip -1 > '{path}'"), LONG)
    assert read_all(open_input(f"exec:gzip -dc '{path}'")) == LONG


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("cat >/dev/null; exit 3", "exit status 3"),
        ("cat >/dev/null; kill -9 $$", "killed by SIGKILL"),
        ("no-such-command-here", "exit status 127"),
    ],
)
def test_command_that_fails_at_the_end_of_output(command: str, words: str) -> None:
    output = open_output(f"exec:{command} 2>/dev/null")
    channel = Channel(output)
    channel.write(b"words")
    assert channel.close() < 0
    assert words in output.reason


def test_command_that_fails_early() -> None:
    output = open_output("exec:exit 4")
    channel = Channel(output)
    while channel.write(LONG) > 0:
        pass
    assert channel.end is End.CLOSED
    assert channel.close() == -errno.EPIPE
    assert "exit status 4" in output.reason


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    ("command", "words"),
    [("exit 3", "exit status 3"), ("kill -SEGV $$", "killed by SIGSEGV")],
)
@pytest.mark.parametrize("whole", [True, False])
def test_command_that_fails_at_the_end_of_input(
    command: str, words: str, whole: bool, blocking: bool
) -> None:
    source = open_input(f"exec:printf words; {command}", blocking=blocking)
    channel = Channel(source)
    got = b"".join(iter(channel.read_chunk, b"")) if whole else channel.read(5)
    if not whole:
        while len(got) < 5:
            got += channel.read(5 - len(got))
        assert channel.peek(1) == b""
    assert got == b"words"
    assert (channel.error, channel.end) == (-errno.EIO, End.FAILED)
    assert channel.close() == -errno.EIO
    assert words in source.reason


def test_reader_that_has_enough() -> None:
    """What its leaving does to the command is no failure."""
    source = open_input("exec:cat /dev/zero")
    channel = Channel(source)
    assert channel.read(100) == bytes(100)
    assert channel.close() == 0
    source = open_input("exec:cat /dev/zero; exit 5")
    assert source.get_bytes(10, 0)
    assert source.close() == -errno.EIO
    assert "exit status 5" in source.reason


@pytest.mark.parametrize("command", ["sleep 98701", "trap '' TERM; sleep 98701 & wait; wait"])
@pytest.mark.parametrize("opening", [open_input, open_output])
def test_command_that_never_ends(opening: Callable[..., Transport], command: str) -> None:
    operations = opening(f"exec:{command}", grace=0.2)
    assert operations.close() == -errno.ETIMEDOUT
    assert "killed" in operations.reason
    for _ in range(100):
        left = [p for p in psutil.process_iter(["cmdline"]) if "98701" in (p.info["cmdline"] or ())]
        if not left:
            break
        time.sleep(0.05)
    assert not left


def test_command_that_goes_on_without_its_pipe() -> None:
    source = open_input("exec:printf words; exec >&-; sleep 98702", grace=0.05)
    assert source.get_bytes(10, 0) == b"words"
    assert not source.get_bytes(10, 5)
    assert source.close() == -errno.ETIMEDOUT
    source = open_input("exec:printf words; exec >&-; sleep 0.1; exit 6")
    assert source.get_bytes(10, 0) == b"words"
    assert source.get_bytes(10, 5) == -errno.EIO
    assert source.close() == -errno.EIO


# Memory


def test_memory() -> None:
    output = MemoryOutput()
    channel = Channel(output)
    channel.write_buffers([b"length", b"----", b"data"], 14)
    assert channel.overwrite(6, b"0014") == 4
    assert channel.close() == 0
    assert output.data == b"length0014data"
    assert output.put_buffer(memoryview(b"gap"), 16) == 3
    assert output.data[14:] == b"\0\0gap"
    source = Channel(MemoryInput(output.data))
    assert source.read(6) == b"length"
    assert source.read_chunk() == b"0014data\0\0gap"
    assert source.read_chunk() == b""
    assert source.end is End.CLEAN
    assert MemoryInput(memoryview(b"abc")).get_bytes(5, 1) == b"bc"


# A real QEMU


@pytest.mark.parametrize("text", ["tcp:127.0.0.1:0", "tcp:[::1]:0", "unix:{}/socket"])
def test_qemu_writes_to_a_socket(tmp_path: Path, stream: bytes, text: str) -> None:
    if "::1" in text:
        ipv6()
    with Qemu(tmp_path) as qemu, listen(text.format(tmp_path)) as listening:
        qemu.execute("migrate", uri=str(listening.address))
        assert len(whole(read_all(listening.accept(timeout=30)))) == len(stream)
        assert qemu.migration()["status"] == "completed"


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_qemu_writes_to_a_descriptor(tmp_path: Path, stream: bytes, kind: str) -> None:
    ours, theirs = (end.detach() for end in socket.socketpair()) if kind == "socket" else os.pipe()
    with Qemu(tmp_path) as qemu:
        qemu.hand_over(theirs, "migration")
        os.close(theirs)
        qemu.execute("migrate", uri="fd:migration")
        assert len(whole(read_all(open_input(f"fd:{ours}")))) == len(stream)
        assert qemu.migration()["status"] == "completed"


def test_qemu_writes_to_a_command(tmp_path: Path, stream: bytes) -> None:
    """Ours reads what the command passes on."""
    os.mkfifo(tmp_path / "fifo")
    with Qemu(tmp_path) as qemu:
        qemu.execute("migrate", uri="exec:gzip -1 > fifo")
        data = read_all(open_input(f"exec:gzip -dc < '{tmp_path}/fifo'"))
        assert len(whole(data)) == len(stream)


def test_qemu_whose_reader_leaves(tmp_path: Path) -> None:
    options = laden(tmp_path)
    with Qemu(tmp_path, *options) as qemu, listen(f"unix:{tmp_path}/socket") as listening:
        qemu.execute("migrate", uri=str(listening.address))
        source = listening.accept(timeout=30)
        assert source.get_bytes(4, 0) == b"QEVM"
        assert source.close() == 0
        assert qemu.migration()["status"] == "failed"


def loaded(qemu: Qemu) -> None:
    assert qemu.migration()["status"] == "completed"
    assert qemu.execute("query-status")["status"] in ("paused", "prelaunch")
    qemu.execute("cont")
    assert qemu.execute("query-status")["status"] == "running"


@pytest.mark.parametrize("text", ["tcp:127.0.0.1:{port}", "tcp:[::1]:{port}", "unix:{path}/socket"])
def test_qemu_reads_from_a_socket(tmp_path: Path, stream: bytes, text: str) -> None:
    if "::1" in text:
        ipv6()
    with listen(text.format(port=0, path=tmp_path)) as listening:
        address = str(listening.address)
    with Qemu(tmp_path, incoming=True) as qemu:
        qemu.execute("migrate-incoming", uri=address)
        write_all(open_output(address, timeout=30), stream)
        loaded(qemu)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_qemu_reads_from_a_descriptor(tmp_path: Path, stream: bytes, kind: str) -> None:
    if kind == "socket":
        theirs, ours = (end.detach() for end in socket.socketpair())
    else:
        theirs, ours = os.pipe()
    with Qemu(tmp_path, incoming=True) as qemu:
        qemu.hand_over(theirs, "migration")
        os.close(theirs)
        qemu.execute("migrate-incoming", uri="fd:migration")
        write_all(open_output("fd:out", fds={"out": ours}), stream)
        loaded(qemu)


def test_qemu_reads_from_a_command(tmp_path: Path, stream: bytes) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Qemu(tmp_path, incoming=True) as qemu:
        qemu.execute("migrate-incoming", uri="exec:gzip -dc < fifo")
        write_all(open_output(f"exec:gzip -1 > '{tmp_path}/fifo'"), stream)
        loaded(qemu)


def test_qemu_reads_from_a_file(tmp_path: Path, stream: bytes) -> None:
    path = tmp_path / "container"
    path.write_bytes(4096 * b"x")
    write_all(open_output(f"file:{path},offset=4K"), stream)
    with Qemu(tmp_path, incoming=True) as qemu:
        qemu.execute("migrate-incoming", uri="exec:tail -c +4097 container")
        loaded(qemu)
