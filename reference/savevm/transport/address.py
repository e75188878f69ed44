"""Where a stream goes to or comes from, as QEMU's ``migrate`` and ``-incoming`` name it."""

import errno
import os
import re
from dataclasses import dataclass
from typing import Final, Literal, cast

__all__ = ["Address", "Scheme", "named"]

Scheme = Literal["file", "fd", "tcp", "unix", "exec", "standard"]

SCHEMES: Final = ("file", "fd", "tcp", "unix", "exec")
# QEMU's others: refused, rather than taken for the name of a file.
FOREIGN: Final = ("rdma", "vsock")
OFFSET: Final = ",offset="
MOST: Final = (1 << 63) - 1
PORTS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Address:
    """One end of a migration.

    ``target`` is a path ("file", "unix"; behind "@" a Linux abstract name), a number or a name
    ("fd"), a host ("tcp"; empty is every local address to listen on, the loopback to connect to), a
    shell command ("exec") or "-" ("standard").  ``port`` is of "tcp", 0 leaves the choice to the
    system; ``offset`` is of "file", in bytes.  ``str`` gives the URI.  Raises ``OSError`` (EINVAL).
    """

    scheme: Scheme
    target: str
    port: int = 0
    offset: int = 0

    def __post_init__(self) -> None:
        if not self.target and self.scheme != "tcp":
            raise _invalid(f"{self.scheme}:", "nothing is named")
        if "\0" in self.target:
            raise _invalid(str(self), "it has a NUL")
        if not 0 <= self.port < PORTS:
            raise _invalid(str(self), "a port is a number below 65536")
        if not 0 <= self.offset <= MOST:
            raise _invalid(str(self), "an offset is a number below 2**63")

    def __str__(self) -> str:
        if self.scheme == "standard":
            return "-"
        if self.scheme == "tcp":
            host = f"[{self.target}]" if ":" in self.target else self.target
            return f"tcp:{host}:{self.port}"
        explicit = self.scheme == "file" and (self.offset or OFFSET in self.target)
        return f"{self.scheme}:{self.target}" + (f"{OFFSET}{self.offset}" if explicit else "")

    @classmethod
    def parse(cls, text: str) -> "Address":
        """The address that ``text`` is.

        ``file:PATH[,offset=N]`` (N decimal, hexadecimal, or decimal with one of the binary suffixes
        of QEMU's sizes), ``fd:N``, ``fd:NAME``, ``tcp:HOST:PORT`` (an IPv6 address in brackets),
        ``unix:PATH``, ``exec:COMMAND``; "-" is the standard stream, anything else the path of a
        file.  Raises ``OSError`` (EINVAL, or ENOTSUP for what only QEMU has).
        """
        scheme, colon, rest = text.partition(":")
        if text == "-":
            return cls("standard", text)
        if colon and scheme in FOREIGN:
            raise OSError(errno.ENOTSUP, f"no transport for {scheme}", text)
        if not colon or scheme not in SCHEMES:
            return cls("file", text)
        if scheme == "tcp":
            found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):([0-9]{1,5})", rest)
            if not found:
                raise _invalid(text, "tcp:HOST:PORT is wanted, [HOST] for IPv6")
            return cls("tcp", found[1] or found[2] or "", int(found[3]))
        if scheme == "file" and OFFSET in rest:
            path, _, number = rest.rpartition(OFFSET)
            return cls("file", path, offset=_size(number, text))
        return cls(cast(Scheme, scheme), rest)


def _size(text: str, whole: str) -> int:
    found = re.fullmatch(r"0x([0-9a-f]+)|([0-9]+)([bkmgtpe]?)", text, re.ASCII | re.IGNORECASE)
    if not found or len(text) > 20:
        raise _invalid(whole, f"{text!r} is no offset")
    if found[1]:
        return int(found[1], 16)
    return int(found[2]) << 10 * "bkmgtpe".index(found[3].lower() or "b")


def _invalid(text: str, why: str) -> OSError:
    return OSError(errno.EINVAL, f"bad address: {why}", text)


def named(error: OSError, address: object) -> OSError:
    """``error``, of the subclass that belongs to its errno, with the address as its file name."""
    number = error.errno or (errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EIO)
    why = error.strerror or str(error) or os.strerror(number)
    # What a resolver says is numbered in its own way.
    return OSError(number if number > 0 else errno.EADDRNOTAVAIL, why, str(address))
