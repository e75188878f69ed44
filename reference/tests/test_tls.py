"""TLS: real handshakes, among ourselves and with a real QEMU.  Certificates are made here."""

import asyncio
import datetime
import errno
import ipaddress
import os
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from qemus import LADEN, Qemu, laden, stream_of_qemu, whole  # noqa: F401
from wires import carry, no_hang, nothing_left_open  # noqa: F401

from savevm.channel import Channel, End
from savevm.transport import (
    Credentials,
    Listening,
    Tls,
    TlsError,
    Transport,
    listen,
    open_input,
    open_output,
)

LONG = random.Random(3).randbytes(3 << 20)
DAY = datetime.timedelta(days=1)
ANY = "tcp:127.0.0.1:0"


class Authority:
    """Makes certificates."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = (
            self._builder(self.name, self.key.public_key(), -10, 10)
            .add_extension(constraints, critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, first: int, last: int
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + first * DAY)
            .not_valid_after(now + last * DAY)
        )

    def save(
        self,
        directory: Path,
        side: str,
        *,
        host: str = "localhost",
        first: int = -5,
        last: int = 5,
        password: bytes = b"",
    ) -> x509.Certificate:
        """A certificate with its key, valid from day to day."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, side)])
        names: list[x509.GeneralName] = [x509.DNSName(host)]
        if host == "localhost":
            names += [x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1")]
        server = side == "server"
        use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            self._builder(name, key.public_key(), first, last)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            encryption = serialization.BestAvailableEncryption(password)
        (directory / f"{side}-cert.pem").write_bytes(certificate.public_bytes(PEM))
        (directory / f"{side}-key.pem").write_bytes(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return certificate

    def revoke(self, *certificates: x509.Certificate) -> bytes:
        """The list of what is revoked."""
        now = datetime.datetime.now(datetime.UTC)
        revoked = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        revoked = revoked.last_update(now - DAY).next_update(now + DAY)
        for certificate in certificates:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            revoked = revoked.add_revoked_certificate(entry.revocation_date(now - DAY).build())
        return revoked.sign(self.key, hashes.SHA256()).public_bytes(PEM)


PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("good CA")


@pytest.fixture
def make(authority: Authority, tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory of credentials, laid out as QEMU's."""

    def make(
        *sides: str, ca: Authority = authority, trust: Authority = authority, **how: Any
    ) -> Path:
        directory = tmp_path / f"pki-{os.urandom(4).hex()}"
        directory.mkdir()
        (directory / "ca-cert.pem").write_bytes(trust.certificate.public_bytes(PEM))
        for side in sides:
            ca.save(directory, side, **how)
        return directory

    return make


Make = Callable[..., Path]


def attempt(job: Callable[[], object]) -> object:
    try:
        return job()
    except OSError as error:
        return error


def sides(
    listening: Listening,
    client: Callable[[], object],
    server: Callable[[Transport], object],
    timeout: float = 20,
) -> tuple[object, object]:
    """What a client and a server come to: what they return, or the error that they raise."""
    with ThreadPoolExecutor(2) as pool:
        served = pool.submit(attempt, lambda: server(listening.accept(timeout=timeout)))
        connected = pool.submit(attempt, client)
        return connected.result(60), served.result(60)


def write(operations: Transport, data: bytes = LONG) -> str:
    """The reason why writing failed, or "well"."""
    channel = Channel(operations)
    channel.write(data)
    return "well" if channel.close() == 0 else operations.reason


def read(operations: Transport) -> bytes | str:
    """All that there is, or why it could not be had."""
    channel = Channel(operations)
    data = b"".join(iter(channel.read_chunk, b""))
    return data if channel.close() == 0 and channel.end is End.CLEAN else operations.reason


@pytest.mark.parametrize("text", [ANY, "tcp:localhost:0", "unix:{}/socket"])
@pytest.mark.parametrize("who_writes", ["client", "server"])
def test_both_ways(make: Make, tmp_path: Path, text: str, who_writes: str) -> None:
    server = Credentials(make("server"))
    client = Credentials(make("client"), hostname="localhost" if "unix" in text else "")
    with listen(text.format(tmp_path), tls=server) as listening:
        address = str(listening.address)
        if who_writes == "client":
            said, data = sides(listening, lambda: write(open_output(address, tls=client)), read)
        else:
            data, said = sides(
                listening, lambda: read(open_input(address, listening=False, tls=client)), write
            )
    assert said == "well"
    assert data == LONG


def test_over_a_socket_handed_over(make: Make) -> None:
    ours, theirs = (end.detach() for end in socket.socketpair())
    directory = make("server", "client")
    with ThreadPoolExecutor(1) as pool:
        data = pool.submit(
            lambda: read(open_input("fd:x", fds={"x": ours}, tls=Credentials(directory)))
        )
        credentials = Credentials(directory, hostname="localhost")
        assert write(open_output(f"fd:{theirs}", tls=credentials)) == "well"
        assert data.result() == LONG


def test_it_is_secret(make: Make, tmp_path: Path) -> None:
    """What is on the wire is TLS, from the first byte to the last."""
    directory = make("server", "client")
    wire = bytearray()
    with listen(ANY, tls=Credentials(directory)) as listening, listen(ANY) as tap:

        def forward() -> None:
            with socket.create_connection(("127.0.0.1", listening.address.port)) as server:
                accepted = tap.accept(timeout=20)
                client = socket.socket(fileno=os.dup(accepted.fileno()))
                with client:

                    def back() -> None:
                        while data := server.recv(65536):
                            client.sendall(data)

                    thread = threading.Thread(target=back)
                    thread.start()
                    while data := client.recv(65536):
                        wire.extend(data)
                        server.sendall(data)
                    server.shutdown(socket.SHUT_WR)
                    thread.join()
                assert accepted.close() == 0

        with ThreadPoolExecutor(1) as pool:
            forwarded = pool.submit(forward)
            address = str(tap.address)
            said, data = sides(
                listening,
                lambda: write(open_output(address, tls=Credentials(directory)), b"QEVM" * 1000),
                read,
            )
            forwarded.result()
    assert (said, data) == ("well", b"QEVM" * 1000)
    assert b"QEVM" not in wire
    assert wire.startswith(b"\x16\x03")


def test_client_without_certificate_where_none_is_asked(make: Make) -> None:
    server = Credentials(make("server"), verify_peer=False)
    with listen(ANY, tls=server) as listening:
        said, data = sides(
            listening,
            lambda: write(open_output(listening.address, tls=Credentials(make()))),
            read,
        )
    assert (said, data) == ("well", LONG)


def test_key_with_password(make: Make) -> None:
    server = Credentials(make("server", password=b"sesame"), password="sesame")
    with listen(ANY, tls=server) as listening:
        said, data = sides(
            listening,
            lambda: write(open_output(listening.address, tls=Credentials(make("client")))),
            read,
        )
    assert (said, data) == ("well", LONG)


# A server that the client refuses

REFUSED_SERVERS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "wrong CA": (
        {"ca": Authority("bad CA")},
        "",
        "server's certificate is of another CA",
        "does not trust the CA of our certificate",
    ),
    "expired": (
        {"first": -5, "last": -1},
        "",
        "server's certificate has expired",
        "our certificate has expired",
    ),
    "not yet valid": ({"first": 1}, "", "server's certificate is not valid yet", "our certificate"),
    "wrong host name": (
        {"host": "elsewhere.example"},
        "localhost",
        "server's certificate is not for the host 'localhost'",
        "our certificate is not acceptable",
    ),
    "wrong address": (
        {"host": "elsewhere.example"},
        "",
        "server's certificate is not for the host '127.0.0.1'",
        "our certificate is not acceptable",
    ),
    "wrong host name asked for": (
        {},
        "elsewhere.example",
        "server's certificate is not for the host 'elsewhere.example'",
        "our certificate is not acceptable",
    ),
}


@pytest.mark.parametrize("case", REFUSED_SERVERS)
def test_server_is_refused(make: Make, case: str) -> None:
    how, hostname, ours, theirs = REFUSED_SERVERS[case]
    server = Credentials(make("server", **how))
    client = Credentials(make("client"), hostname=hostname)
    with listen(ANY, tls=server) as listening:
        address = str(listening.address)
        refusal, refused = sides(listening, lambda: open_output(address, tls=client), read)
    for error, words in ((refusal, ours), (refused, theirs)):
        assert isinstance(error, TlsError)
        assert error.errno == errno.EPROTO
        assert words in str(error)
        assert address in str(error)


def test_server_is_not_verified_where_that_is_wanted(make: Make) -> None:
    server = Credentials(make("server", host="elsewhere.example", last=-1))
    client = Credentials(make("client"), verify_peer=False)
    with listen(ANY, tls=server) as listening:
        said, data = sides(
            listening, lambda: write(open_output(listening.address, tls=client)), read
        )
    assert (said, data) == ("well", LONG)


def test_revoked(make: Make, authority: Authority) -> None:
    directory = make("client")
    certificate = authority.save(directory, "server")
    (directory / "ca-crl.pem").write_bytes(authority.revoke())
    with listen(ANY, tls=Credentials(directory)) as listening:
        address = str(listening.address)

        def connect() -> str:
            return write(open_output(address, tls=Credentials(directory)))

        assert sides(listening, connect, read) == ("well", LONG)
        (directory / "ca-crl.pem").write_bytes(authority.revoke(certificate))
        refusal, refused = sides(listening, connect, read)
    assert "server's certificate is revoked" in str(refusal)
    assert "our certificate is revoked" in str(refused)


# A client that the server refuses: it learns of that only once it goes on

REFUSED_CLIENTS: dict[str, tuple[tuple[str, ...], dict[str, Any], str, str]] = {
    "missing": ((), {}, "client's certificate is missing", "our certificate is missing"),
    "wrong CA": (
        ("client",),
        {"ca": Authority("bad CA")},
        "client's certificate is of another CA",
        "does not trust the CA of our certificate",
    ),
    "expired": (
        ("client",),
        {"last": -1},
        "client's certificate has expired",
        "our certificate has expired",
    ),
}


@pytest.mark.parametrize("size", [100, 3 << 20])
@pytest.mark.parametrize("case", REFUSED_CLIENTS)
def test_client_is_refused(make: Make, case: str, size: int) -> None:
    sides_, how, theirs, ours = REFUSED_CLIENTS[case]
    client = Credentials(make(*sides_, **how))
    with listen(ANY, tls=Credentials(make("server"))) as listening:
        address = str(listening.address)
        said, refusal = sides(
            listening, lambda: write(open_output(address, tls=client), bytes(size)), read
        )
    assert isinstance(refusal, TlsError)
    assert theirs in str(refusal)
    assert address in str(refusal)
    assert ours in str(said)


@pytest.mark.parametrize("case", REFUSED_CLIENTS)
def test_client_that_reads_is_refused(make: Make, case: str) -> None:
    sides_, how, theirs, ours = REFUSED_CLIENTS[case]
    client = Credentials(make(*sides_, **how))
    with listen(ANY, tls=Credentials(make("server"))) as listening:
        address = str(listening.address)
        said, refusal = sides(
            listening, lambda: read(open_input(address, listening=False, tls=client)), write
        )
    assert isinstance(refusal, TlsError)
    assert theirs in str(refusal)
    assert ours in str(said)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificate_in_each_version(make: Make, version: ssl.TLSVersion) -> None:
    """In TLS 1.2 the handshake itself tells the client, in 1.3 it is over by then."""

    class Old(Credentials):
        def context(self, *, server: bool) -> ssl.SSLContext:
            context = Credentials.context(self, server=server)
            context.maximum_version = version
            return context

    with listen(ANY, tls=Old(make("server"))) as listening:
        address = str(listening.address)
        said, data = sides(
            listening, lambda: write(open_output(address, tls=Credentials(make("client")))), read
        )
        assert (said, data) == ("well", LONG)
        said, refusal = sides(
            listening, lambda: write(open_output(address, tls=Credentials(make()))), read
        )
    assert "client's certificate is missing" in str(refusal)
    assert "our certificate is missing" in str(said)


# Peers without TLS


@pytest.mark.parametrize("says", [b"QEVM\0\0\0\3" + bytes(1000), b"Q", b"GET / HTTP/1.0\r\n\r\n"])
def test_client_speaks_plain_text(make: Make, says: bytes) -> None:
    with listen(ANY, tls=Credentials(make("server"))) as listening:
        address = str(listening.address)
        said, refusal = sides(listening, lambda: write(open_output(address), says), read)
    assert isinstance(refusal, TlsError)
    assert "speak TLS" in str(refusal)
    assert address in str(refusal)
    # It has no way to understand the answer.
    assert isinstance(said, str)


def test_plain_client_goes_on_writing(make: Make) -> None:
    with listen(ANY, tls=Credentials(make("server"))) as listening:
        address = str(listening.address)
        said, refusal = sides(listening, lambda: write(open_output(address), LONG * 10), read)
    assert "does not speak TLS" in str(refusal)
    assert said != "well"


@pytest.mark.parametrize("says", [b"QEVM\0\0\0\3" + bytes(1000), b"+", b""])
def test_server_speaks_plain_text(make: Make, says: bytes) -> None:
    with listen(ANY) as listening:
        address = str(listening.address)
        refusal, _ = sides(
            listening,
            lambda: open_output(address, tls=Credentials(make("client"))),
            lambda operations: write(operations, says) if says else operations.close(),
        )
    assert isinstance(refusal, TlsError)
    assert "speak TLS" in str(refusal)
    assert address in str(refusal)


def test_plain_server_is_told_apart_by_its_reader(make: Make) -> None:
    """A stream does not begin as TLS does."""
    with listen(ANY) as listening:
        refusal, data = sides(
            listening,
            lambda: open_output(listening.address, tls=Credentials(make("client")), timeout=0.2),
            read,
        )
    assert isinstance(refusal, TlsError)
    assert isinstance(data, bytes)
    assert data.startswith(b"\x16\x03")


@pytest.mark.parametrize("who", ["client", "server"])
def test_peer_says_nothing(make: Make, who: str) -> None:
    directory = make("server", "client")
    if who == "server":
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"tcp:127.0.0.1:{server.getsockname()[1]}"
            with pytest.raises(TlsError, match="no TLS handshake in time") as raised:
                open_output(address, tls=Credentials(directory), timeout=0.2)
            assert address in str(raised.value)
    else:
        with listen(ANY, tls=Credentials(directory)) as listening:
            client = socket.create_connection(("127.0.0.1", listening.address.port))
            with client, pytest.raises(TlsError, match="no TLS handshake in time"):
                listening.accept(timeout=0.2)


# How a connection ends


def secured(directory: Path, *, blocking: bool = True) -> tuple[Transport, Transport]:
    """The two ends of a secured connection: who reads (server), and who writes."""
    with listen(ANY, tls=Credentials(directory)) as listening, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listening.accept, timeout=20, blocking=blocking)
        output = open_output(
            listening.address, tls=Credentials(directory), timeout=20, blocking=blocking
        )
        return accepted.result(), output


def test_peer_that_ends_without_ending_tls_has_truncated(make: Make) -> None:
    source, output = secured(make("server", "client"))
    assert output.put_buffer(memoryview(b"words"), 0) == 5
    # As QEMU before 10.0 ends.
    assert isinstance(output, Tls)
    assert output.shutdown() == 0
    channel = Channel(source)
    assert channel.read(10) == b"words"
    assert (channel.error, channel.end) == (-errno.ECONNRESET, End.CLOSED)
    assert "without ending TLS" in source.reason
    channel.close()
    output.close()


def test_reader_that_leaves(make: Make) -> None:
    source, output = secured(make("server", "client"))
    assert source.close() == 0
    channel = Channel(output)
    while channel.write(LONG) > 0:
        pass
    assert channel.end is End.CLOSED
    assert output.reason
    assert channel.close() == channel.error


def test_broken_records_are_an_error(make: Make) -> None:
    source, output = secured(make("server", "client"))
    with socket.socket(fileno=os.dup(output.fileno())) as plain:
        plain.sendall(b"plain text again" * 10)
    channel = Channel(source)
    assert channel.read(1) == b""
    assert (channel.error, channel.end) == (-errno.EPROTO, End.FAILED)
    assert source.reason
    channel.close()
    output.close()


def test_nothing_is_sent_once_closed(make: Make) -> None:
    """Least of all in plain text."""
    source, output = secured(make("server", "client"))
    with ThreadPoolExecutor(1) as pool:
        data = pool.submit(read, source)
        assert output.close() == 0
        assert data.result() == b""
    assert output.close() == 0
    assert output.fileno() == -1
    assert output.put_buffer(memoryview(b"x"), 0) == -errno.EBADF
    assert output.put_buffers([b"x", b"y"], 0) == -errno.EBADF
    assert output.get_bytes(1, 0) == -errno.EBADF


def test_end_that_was_read_can_be_read_again(make: Make) -> None:
    """And it is answered, so that who wrote is gone before who read closes."""
    source, output = secured(make("server", "client"))
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(write, output, b"words")
        channel = Channel(source)
        assert channel.read(10) == b"words"
        assert channel.end is End.CLEAN
        assert said.result() == "well"
    assert source.get_bytes(10, 5) == b""
    assert channel.close() == 0


@pytest.mark.parametrize("all_of_it", [True, False])
@pytest.mark.parametrize("text", [ANY, "unix:{}/socket"])
def test_peer_that_leaves_without_a_word(
    make: Make, tmp_path: Path, text: str, all_of_it: bool
) -> None:
    """As QEMU does once it has all that it wants, which is no failure; leaving some of it is."""
    credentials = Credentials(make("server", "client"), hostname="localhost")
    with listen(text.format(tmp_path), tls=credentials) as listening, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listening.accept, timeout=20)
        output = open_output(listening.address, tls=credentials, timeout=20)
        source = accepted.result()
    assert isinstance(source, Tls)
    channel = Channel(output)
    # Less than the system holds, more than is taken out of it at once.
    assert channel.write(bytes(100_000)) == 100_000
    wanted = 100_000 if all_of_it else 1
    assert len(Channel(source).read_whole(wanted)) == wanted
    source._socket.close()
    closed = channel.close()
    assert (closed == 0) == all_of_it, output.reason


def test_many_buffers(make: Make) -> None:
    source, output = secured(make("server", "client"))
    with ThreadPoolExecutor(1) as pool:
        data = pool.submit(read, source)
        channel = Channel(output)
        pieces = [LONG[i : i + 4104] for i in range(0, len(LONG), 4104)]
        assert channel.write_buffers(pieces, len(LONG)) == len(LONG)
        assert channel.close() == 0
        assert data.result() == LONG


def test_not_now(make: Make) -> None:
    source, output = secured(make("server", "client"), blocking=False)
    assert source.get_bytes(1, 0) == -errno.EAGAIN
    assert source.get_buffer(memoryview(bytearray(1)), 0) == -errno.EAGAIN
    sent = 0
    while (count := output.put_buffer(memoryview(LONG)[sent % 1000 :], sent)) > 0:
        sent += count
    assert count == -errno.EAGAIN
    source.close()
    output.close()


def test_in_an_event_loop(make: Make) -> None:
    source, output = secured(make("server", "client"), blocking=False)
    assert asyncio.run(carry(source, output, LONG)) == LONG


# Credentials that cannot be used


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda d: (d / "ca-cert.pem").unlink(), FileNotFoundError, "ca-cert.pem"),
        (lambda d: (d / "server-key.pem").unlink(), FileNotFoundError, "server-key.pem"),
        (lambda d: (d / "server-cert.pem").unlink(), FileNotFoundError, "server-cert.pem"),
        (lambda d: (d / "ca-cert.pem").write_text("x"), TlsError, "ca-cert.pem"),
        (lambda d: (d / "server-cert.pem").write_text("x"), TlsError, "server-cert.pem"),
        (
            lambda d: (d / "server-key.pem").write_bytes((d / "client-key.pem").read_bytes()),
            TlsError,
            "key values mismatch",
        ),
    ],
)
def test_credentials_that_cannot_be_used(
    make: Make, damage: Callable[[Path], object], kind: type[OSError], words: str
) -> None:
    directory = make("server", "client")
    damage(directory)
    with pytest.raises(kind, match=words):
        listen(ANY, tls=Credentials(directory))


def test_password_is_not_asked_for_at_the_terminal(make: Make) -> None:
    directory = make("server", password=b"sesame")
    for password in ("", "wrong"):
        with pytest.raises(TlsError, match=r"server-cert\.pem"):
            listen(ANY, tls=Credentials(directory, password=password))


def test_name_to_verify_is_needed(make: Make, tmp_path: Path) -> None:
    directory = make("server", "client")
    with listen(f"unix:{tmp_path}/socket") as listening:
        for hostname in ("", ".", "a" * 300):
            with pytest.raises(TlsError, match="host name"):
                open_output(listening.address, tls=Credentials(directory, hostname=hostname))


@pytest.mark.parametrize("text", ["exec:cat", "/dev/null", "-"])
def test_tls_needs_a_socket(make: Make, text: str) -> None:
    with pytest.raises(TlsError, match="needs a socket"):
        open_output(text, tls=Credentials(make("client")))


def test_tls_over_a_pipe(make: Make) -> None:
    readable, writable = os.pipe()
    with pytest.raises(TlsError, match="needs a socket"):
        open_output(f"fd:{writable}", tls=Credentials(make("client")))
    assert os.read(readable, 1) == b""
    os.close(readable)


# A real QEMU


@pytest.fixture
def outgoing(tmp_path: Path) -> Iterator[Qemu]:
    with Qemu(tmp_path, *laden(tmp_path)) as qemu:
        yield qemu


@pytest.fixture
def incoming(tmp_path: Path) -> Iterator[Qemu]:
    with Qemu(tmp_path, incoming=True) as qemu:
        yield qemu


def received(qemu: Qemu, listening: Listening) -> tuple[bytes, Channel, Transport]:
    """What QEMU writes to us."""
    qemu.execute("migrate", uri=str(listening.address))
    operations = listening.accept(timeout=20)
    channel = Channel(operations)
    data = b"".join(iter(channel.read_chunk, b""))
    channel.close()
    return data, channel, operations


@pytest.mark.parametrize("text", [ANY, "unix:{}/socket"])
def test_qemu_writes(make: Make, tmp_path: Path, outgoing: Qemu, text: str) -> None:
    outgoing.credentials(make("client"), "client")
    if "unix" in text:
        outgoing.execute("migrate-set-parameters", tls_hostname="localhost")
    with listen(text.format(tmp_path), tls=Credentials(make("server"))) as listening:
        data, channel, _ = received(outgoing, listening)
    assert len(whole(data)) > LADEN
    # It does not end TLS before 10.0, so the end of the stream is all that tells.
    assert (channel.error, channel.end) in ((0, End.CLEAN), (-errno.ECONNRESET, End.CLOSED))
    assert outgoing.migration()["status"] == "completed"


QEMU_REFUSES = {name: how for name, (how, *_) in REFUSED_SERVERS.items() if "asked" not in name}


@pytest.mark.parametrize("case", QEMU_REFUSES)
def test_qemu_refuses_our_server(make: Make, outgoing: Qemu, case: str) -> None:
    outgoing.credentials(make("client"), "client")
    with listen(ANY, tls=Credentials(make("server", **QEMU_REFUSES[case]))) as listening:
        result = attempt(lambda: received(outgoing, listening))
        address = str(listening.address)
    if isinstance(result, tuple):
        # It judges after the handshake, and goes without a word.
        data, channel, operations = result
        assert (data, channel.end) == (b"", End.CLOSED)
        assert operations.reason
    else:
        assert isinstance(result, TlsError)
        assert address in str(result)
    answer = outgoing.migration()
    assert answer["status"] == "failed"
    assert "ertificate" in answer["error-desc"]


@pytest.mark.parametrize("case", ["missing", "wrong CA"])
def test_qemu_is_refused_as_client(make: Make, outgoing: Qemu, case: str) -> None:
    """What is expired it does not even load."""
    sides_, how, theirs, _ = REFUSED_CLIENTS[case]
    directory = make(*sides_, **how)
    if case == "wrong CA":
        # Nor what is not of the CA beside it: it has to trust both.
        with (directory / "ca-cert.pem").open("ab") as both:
            both.write(how["ca"].certificate.public_bytes(PEM))
    outgoing.credentials(directory, "client")
    server = Credentials(make("server"))
    with listen(ANY, tls=server) as listening, pytest.raises(TlsError, match=theirs):
        received(outgoing, listening)
    assert outgoing.migration()["status"] == "failed"


def test_qemu_writes_plain_text(make: Make, outgoing: Qemu) -> None:
    with listen(ANY, tls=Credentials(make("server"))) as listening:
        with pytest.raises(TlsError, match="client does not speak TLS"):
            received(outgoing, listening)
        assert outgoing.migration()["status"] == "failed"


def test_qemu_speaks_tls_to_a_plain_reader(make: Make, outgoing: Qemu) -> None:
    outgoing.credentials(make("client"), "client")
    with listen(ANY) as listening:
        outgoing.execute("migrate", uri=str(listening.address))
        source = listening.accept(timeout=20)
        assert source.get_bytes(2, 0) == b"\x16\x03"
        assert source.close() == 0
        assert outgoing.migration()["status"] == "failed"


def expecting(qemu: Qemu, text: str) -> str:
    """Where QEMU waits for a stream."""
    with listen(text) as listening:
        address = str(listening.address)
    qemu.execute("migrate-incoming", uri=address)
    return address


@pytest.mark.parametrize("text", [ANY, "unix:{}/socket"])
def test_qemu_reads(make: Make, tmp_path: Path, incoming: Qemu, stream: bytes, text: str) -> None:
    incoming.credentials(make("server"), "server")
    address = expecting(incoming, text.format(tmp_path))
    output = open_output(address, tls=Credentials(make("client"), hostname="localhost"), timeout=20)
    assert write(output, stream) == "well"
    assert incoming.migration()["status"] == "completed"
    incoming.execute("cont")
    assert incoming.execute("query-status")["status"] == "running"


@pytest.mark.parametrize("case", ["wrong CA", "wrong host name", "wrong host name asked for"])
def test_qemu_is_refused_as_server(make: Make, incoming: Qemu, case: str) -> None:
    how, hostname, words, _ = REFUSED_SERVERS[case]
    directory = make("server", **how)
    if case == "wrong CA":
        with (directory / "ca-cert.pem").open("ab") as both:
            both.write(how["ca"].certificate.public_bytes(PEM))
    incoming.credentials(directory, "server")
    address = expecting(incoming, ANY)
    with pytest.raises(TlsError, match=words):
        open_output(address, tls=Credentials(make("client"), hostname=hostname), timeout=20)


@pytest.mark.parametrize("case", REFUSED_CLIENTS)
def test_qemu_refuses_our_client(make: Make, incoming: Qemu, case: str) -> None:
    sides_, how, *_ = REFUSED_CLIENTS[case]
    incoming.credentials(make("server"), "server")
    address = expecting(incoming, ANY)
    client = Credentials(make(*sides_, **how))
    said = attempt(lambda: write(open_output(address, tls=client, timeout=20), LONG * 5))
    assert said != "well"


def test_qemu_reads_plain_text(make: Make, incoming: Qemu) -> None:
    address = expecting(incoming, ANY)
    with pytest.raises(TlsError, match="speak TLS"):
        open_output(address, tls=Credentials(make("client")), timeout=20)
