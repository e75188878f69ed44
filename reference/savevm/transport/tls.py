"""TLS over a connected socket, with certificates where QEMU has them."""

import contextlib
import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from savevm.channel import Data
from savevm.transport.address import Address
from savevm.transport.fd import Transport
from savevm.transport.socket import Socket, leave, tune

__all__ = ["Credentials", "Tls", "TlsError", "over"]

CA: Final = "ca-cert.pem"
REVOKED: Final = "ca-crl.pem"
# Seconds: for a handshake, as a peer without TLS may wait for us to speak; for telling the peer why
# there is none; and for it to take the end of what we wrote and say what it has against us.
HANDSHAKE: Final = 30.0
FAILURE: Final = 1.0
GRACE: Final = 5.0
# In bytes: the plaintext of a record, and what goes to the system and comes from it at once.
RECORD: Final = 16384
CHUNK: Final = 64 << 10

# OpenSSL's numbers (X509_V_ERR_*) of what is wrong with a certificate.
NOT_YET_VALID: Final = 9
EXPIRED: Final = 10
UNKNOWN_ISSUER: Final = (2, 18, 19, 20, 21)
REVOCATION: Final = 23
WRONG_NAME: Final = (62, 64)

# What OpenSSL makes of a peer that sends something else.
NO_TLS: Final = (
    "WRONG_VERSION_NUMBER",
    "UNKNOWN_PROTOCOL",
    "UNSUPPORTED_PROTOCOL_RECORD",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
)
ALERT: Final = "ALERT_"
# What the peer says against us, by the alert's name.
ALERTS: Final = {
    "UNKNOWN_CA": "it does not trust the CA of our certificate",
    "CERTIFICATE_EXPIRED": "our certificate has expired",
    "CERTIFICATE_REVOKED": "our certificate is revoked",
    "CERTIFICATE_UNKNOWN": "our certificate is not acceptable",
    "BAD_CERTIFICATE": "our certificate is not acceptable, or not for the host it wants",
    "UNSUPPORTED_CERTIFICATE": "our certificate is not for this use",
    "CERTIFICATE_REQUIRED": "our certificate is missing",
    "HANDSHAKE_FAILURE": "no agreement, or our certificate is missing",
    "PROTOCOL_VERSION": "no common version of TLS",
}


class TlsError(OSError):
    """A connection, or what is to secure it, is refused; the text says what was wrong with it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The x509 credentials in ``directory``, named as QEMU's ``tls-creds-x509`` names them.

    ca-cert.pem, and ca-crl.pem where there is one; a server's server-cert.pem and server-key.pem; a
    client's client-cert.pem and client-key.pem, which it can do without where the server does not
    ask.  ``verify_peer``: a client verifies the server's certificate and host name, a server
    requires a certificate and verifies it.  ``hostname`` is whom the client expects, empty for the
    host it connects to.  ``password`` is that of the key.
    """

    directory: str | os.PathLike[str]
    verify_peer: bool = True
    hostname: str = ""
    password: str = ""

    def context(self, *, server: bool) -> ssl.SSLContext:
        """What a handshake needs.

        Raises ``OSError`` for a file that is missing or cannot be read, ``TlsError`` for one that
        is not what its name says.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.check_hostname = self.verify_peer and not server
        context.verify_mode = ssl.CERT_REQUIRED if self.verify_peer else ssl.CERT_NONE
        if server:
            # A client that only writes would leave tickets unread, which resets its connection.
            context.num_tickets = 0
        directory = Path(self.directory)
        if self.verify_peer:
            self._load_authorities(context, directory)
        side = "server" if server else "client"
        certificate, key = (directory / f"{side}-{part}.pem" for part in ("cert", "key"))
        if server or certificate.exists() or key.exists():
            for path in (certificate, key):
                _readable(path)
            try:
                # The text that is asked for otherwise comes from the terminal.
                context.load_cert_chain(certificate, key, lambda: self.password)
            except ssl.SSLError as error:
                why = f"no certificate with its key: {_plain(error)}"
                raise TlsError(errno.EINVAL, why, str(certificate)) from error
        return context

    def _load_authorities(self, context: ssl.SSLContext, directory: Path) -> None:
        paths = [directory / CA]
        if (directory / REVOKED).exists():
            paths.append(directory / REVOKED)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        for path in paths:
            _readable(path)
            try:
                context.load_verify_locations(path)
            except ssl.SSLError as error:
                why = f"not the certificate of an authority: {_plain(error)}"
                raise TlsError(errno.EINVAL, why, str(path)) from error


def _readable(path: Path) -> None:
    # The ssl module does not say which file.
    with path.open("rb"):
        pass


def _plain(error: ssl.SSLError) -> str:
    """OpenSSL's words."""
    return (error.reason or error.strerror or str(error)).replace("_", " ").lower()


def _alert(error: ssl.SSLError) -> str:
    """What the peer's alert means, empty where ``error`` is none."""
    _, alert, name = (error.reason or "").partition(ALERT)
    return f"the peer refuses: {ALERTS.get(name, _plain(error))}" if alert else ""


def _explain(error: OSError, *, server: bool, hostname: str) -> str:
    """What is wrong with a peer with which a handshake failed."""
    peer = "client" if server else "server"
    if isinstance(error, ssl.SSLCertVerificationError):
        code = error.verify_code
        if code == EXPIRED:
            return f"the {peer}'s certificate has expired"
        if code == NOT_YET_VALID:
            return f"the {peer}'s certificate is not valid yet"
        if code in UNKNOWN_ISSUER:
            return f"the {peer}'s certificate is of another CA than {CA}: {error.verify_message}"
        if code == REVOCATION:
            return f"the {peer}'s certificate is revoked"
        if code in WRONG_NAME:
            return f"the {peer}'s certificate is not for the host {hostname!r}"
        return f"the {peer}'s certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError):
        return (
            f"the {peer} closed within the TLS handshake: it may not speak TLS, or refuse our "
            "certificate"
        )
    if isinstance(error, ssl.SSLError):
        if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "the client's certificate is missing"
        if error.reason in NO_TLS:
            return f"the {peer} does not speak TLS"
        return _alert(error) or f"the TLS handshake failed: {_plain(error)}"
    return f"the TLS handshake failed: {error.strerror or error}"


class Tls(Transport):
    """Operations on a secured connection, to be used by one thread at a time.

    A peer that ends without saying so has truncated (-ECONNRESET).  A broken protocol and a peer
    that refuses our certificate, which it may do long after the handshake, are -EPROTO.  After
    -EAGAIN the same bytes have to be offered first.  ``close`` waits up to 5 seconds for the peer
    to take the end of what was written and, where blocking, for its farewell or refusal.
    """

    # OpenSSL works on memory, not on the socket: an alert that it met on its own way out would be
    # lost, and an error of the socket would end a connection that has still something to tell.

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        name: str,
        *,
        server: bool,
        hostname: str,
        blocking: bool,
    ) -> None:
        super().__init__(name)
        connection.setblocking(False)
        tune(connection)
        self._socket: Final = connection
        self._incoming: Final = ssl.MemoryBIO()
        self._outgoing: Final = ssl.MemoryBIO()
        self._tls: Final = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server, server_hostname=hostname or None
        )
        self._hostname: Final = hostname
        # For whom to wait, as a deadline: None is for ever.
        self._patience: Final = None if blocking else 0.0
        self._unsent = memoryview(b"")
        # Bytes that are encrypted, but not sent, so the writer was told to offer them again.
        self._promised = 0
        self._written = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def _wait(self, event: int, deadline: float | None) -> None:
        """Wait for the socket; raises ``BlockingIOError`` at the deadline."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        poll = select.poll()
        poll.register(self._socket, event)
        if not poll.poll(left):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _send(self, deadline: float | None) -> None:
        """Send all that is encrypted."""
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)

    def _receive(self, deadline: float | None) -> None:
        """Have more to decrypt, or its end."""
        while True:
            try:
                data = self._socket.recv(CHUNK)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
            return

    def secure(self, deadline: float = 0.0) -> None:
        """Shake hands, or go on with it.

        Raises ``BlockingIOError`` at the deadline, which leaves it to be gone on with, and ``TlsError``.
        """
        try:
            self._shake_hands(deadline)
        except BlockingIOError:
            raise
        except OSError as error:
            self._written = True
            self.reason = _explain(error, server=self._tls.server_side, hostname=self._hostname)
            raise TlsError(errno.EPROTO, self.reason, self.name) from error

    def _shake_hands(self, deadline: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
                return self._send(deadline)
            except ssl.SSLWantReadError:
                # Who does not take it may have said why.
                with contextlib.suppress(ConnectionError):
                    self._send(deadline)
                self._receive(deadline)
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._send(time.monotonic() + FAILURE)
                raise

    def _failed(self, error: OSError) -> int:
        if isinstance(error, BlockingIOError):
            return -errno.EAGAIN
        if isinstance(error, ssl.SSLEOFError):
            number, reason = errno.ECONNRESET, "the peer ended the connection without ending TLS"
        elif isinstance(error, ssl.SSLZeroReturnError):
            number, reason = errno.EPIPE, "the peer has ended TLS"
        elif isinstance(error, ssl.SSLError):
            number, reason = errno.EPROTO, _alert(error) or _plain(error)
        else:
            number, reason = error.errno or errno.EIO, error.strerror or str(error)
        self.reason = self.reason or reason
        return -number

    def _refused(self) -> int:
        """The negative errno of an alert or a reset that has come in, else 0; all else is lost."""
        try:
            self._receive(0.0)
            while self._tls.read(RECORD):
                pass
        except ssl.SSLError as error:
            return self._failed(error) if _alert(error) else 0
        except ConnectionError as error:
            return self._failed(error)
        except OSError:
            pass
        return 0

    def put_buffer(self, data: memoryview, position: int) -> int:
        if self.fileno() < 0:
            return -errno.EBADF
        self._written = True
        try:
            end = min(len(data), CHUNK)
            while self._promised < end and not self._unsent:
                self._promised += self._tls.write(data[self._promised : end])
            self._send(self._patience)
        except ConnectionError as error:
            return self._refused() or self._failed(error)
        except OSError as error:
            return self._failed(error)
        count, self._promised = self._promised, 0
        return count

    def put_buffers(self, buffers: Sequence[Data], position: int) -> int:
        """As ``put_buffer``, of what lies in several places: together it makes fuller records."""
        some: list[Data] = []
        size = 0
        for buffer in buffers:
            some.append(buffer[: CHUNK - size])
            size += len(some[-1])
            if size == CHUNK:
                break
        return self.put_buffer(memoryview(b"".join(some)), position)

    def _more(self) -> None:
        """Have more to decrypt, once it is there."""
        if self.fileno() < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        # Answers of TLS itself, which the peer may want to have before it goes on.
        with contextlib.suppress(BlockingIOError):
            self._send(0.0)
        self._receive(self._patience)

    def get_buffer(self, buffer: memoryview, position: int) -> int:
        data = self.get_bytes(len(buffer), position)
        if isinstance(data, int):
            return data
        buffer[: len(data)] = data
        return len(data)

    def get_bytes(self, size: int, position: int) -> bytes | int:
        """At most ``size`` bytes and one record, b"" at the end, or a negative errno."""
        try:
            while True:
                try:
                    if data := self._tls.read(min(size, RECORD)):
                        return data
                    break
                except ssl.SSLWantReadError:
                    self._more()
        except ssl.SSLZeroReturnError:
            return b""
        except OSError as error:
            return self._failed(error)
        # Who writes waits for an answer, which need not wait for our close.
        if not self._written:
            with contextlib.suppress(OSError):
                self._tls.unwrap()
            with contextlib.suppress(OSError):
                self._send(0.0)
        return b""

    def shutdown(self) -> int:
        """End the connection under whoever waits on it, in both directions; 0 or a negative errno."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            return self._failed(error)
        return 0

    def close(self) -> int:
        if self.fileno() < 0:
            return 0
        # What failed has nobody to take leave of.
        result = 0 if self.reason else self._farewell(time.monotonic() + GRACE)
        try:
            if self._written:
                leave(self._socket)
            self._socket.close()
        except OSError as error:
            return result or self._failed(error)
        return result

    def _farewell(self, deadline: float) -> int:
        """End TLS: 0, or the negative errno of a peer that does not take it or refuses us."""
        if self._written and (refused := self._refused()):
            return refused
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        try:
            self._send(deadline)
        except BlockingIOError:
            self.reason = "the peer does not take the end"
            return -errno.ETIMEDOUT
        except OSError as error:
            # Over a UNIX socket a pipe breaks too when the peer left with all it was sent.
            left = isinstance(error, BrokenPipeError) and self._socket.family == socket.AF_UNIX
            lost = self._written and (self._promised or not left)
            return self._refused() or (self._failed(error) if lost else 0)
        try:
            # Ours is said; who has written wants to know what the peer says.
            while self._written and self._patience is None:
                try:
                    self._tls.read(RECORD)
                except ssl.SSLWantReadError:
                    self._receive(deadline)
        except ssl.SSLError as error:
            return self._failed(error) if _alert(error) else 0
        except OSError:
            # A peer that just leaves may have had all it wanted.
            pass
        return 0


def over(
    connection: socket.socket,
    address: Address,
    credentials: Credentials | None,
    *,
    server: bool,
    timeout: float | None = None,
    blocking: bool = True,
    handshake: bool = True,
) -> Transport:
    """Operations on ``connection``, secured with the credentials, where there are any.

    The connection is then theirs; it is closed on failure.  ``timeout`` in seconds, for the
    handshake, None for 30; without ``handshake`` that is left to ``Tls.secure``.  Raises
    ``TlsError``, and ``OSError`` for credentials that cannot be read.
    """
    if credentials is None:
        return Socket(connection, str(address), blocking=blocking)
    try:
        secured = _wrapped(connection, address, credentials, server=server, blocking=blocking)
        if handshake:
            _secure(secured, HANDSHAKE if timeout is None else timeout, server=server)
        return secured
    except BaseException:
        leave(connection)
        connection.close()
        raise


def _secure(secured: Tls, timeout: float, *, server: bool) -> None:
    try:
        secured.secure(time.monotonic() + timeout)
    except BlockingIOError as error:
        peer = "client" if server else "server"
        why = f"no TLS handshake in time: the {peer} may not speak TLS"
        raise TlsError(errno.EPROTO, why, secured.name) from error


def _wrapped(
    connection: socket.socket,
    address: Address,
    credentials: Credentials,
    *,
    server: bool,
    blocking: bool,
) -> Tls:
    name = str(address)
    host = address.target or "localhost" if address.scheme == "tcp" else ""
    hostname = "" if server else credentials.hostname or host
    context = credentials.context(server=server)
    if context.check_hostname and not hostname:
        raise TlsError(errno.EINVAL, "no host name to verify the server's certificate by", name)
    try:
        return Tls(connection, context, name, server=server, hostname=hostname, blocking=blocking)
    except ValueError as error:
        raise TlsError(errno.EINVAL, f"bad host name {hostname!r}: {error}", name) from error
