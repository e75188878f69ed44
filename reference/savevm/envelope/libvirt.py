"""libvirt's save image: ``virsh save``, managed save, the memory of external snapshots."""

import struct
import sys
from typing import Any, Final, Literal, NamedTuple

from savevm.errors import stream_error
from savevm.stream.events import Finding
from savevm_spec.constants import (
    LIBVIRT_FORMATS,
    LIBVIRT_HEADER_SIZE,
    LIBVIRT_MAGIC,
    LIBVIRT_MAGIC_PARTIAL,
    LIBVIRT_PADDING,
    LIBVIRT_VERSION_1,
    LIBVIRT_VERSION_2,
    LIMIT_LIBVIRT_DATA,
)

__all__ = ["LibvirtImage", "build", "read", "stream_offset"]

ByteOrder = Literal["little", "big"]

# Version, length of the text, was running, format, cookie offset.
_WORDS: Final = {"little": struct.Struct("<5I"), "big": struct.Struct(">5I")}
_VERSIONS: Final = (LIBVIRT_VERSION_1, LIBVIRT_VERSION_2)
# Offsets in the file
_VERSION: Final = 16
_LENGTH: Final = 20
_FORMAT: Final = 28
_COOKIE: Final = 32


class LibvirtImage(NamedTuple):
    """What a save image says of itself.

    ``complete`` is false until its writer had finished.  ``byte_order`` is that of the header.
    ``format`` is "raw", "sparse" (QEMU's mapped-ram, with offsets in the whole file) or the
    compression.  ``stream_offset`` is where the stream begins in the file, in bytes.  What is no
    UTF-8 in ``domain_xml`` and ``cookie`` is there as surrogates.
    """

    complete: bool
    byte_order: ByteOrder
    version: int
    was_running: bool
    format: str
    stream_offset: int
    domain_xml: str
    cookie: str | None
    findings: tuple[Finding, ...]

    def jsonable(self) -> dict[str, Any]:
        """The header and the texts, as JSON."""
        return {k: v for k, v in self._asdict().items() if k != "findings"}


def _words(header: bytes) -> tuple[ByteOrder, tuple[int, ...]]:
    if len(header) < LIBVIRT_HEADER_SIZE:
        detail = f"the input ends within the header of {LIBVIRT_HEADER_SIZE} bytes"
        raise stream_error("envelope.libvirt.truncated", len(header), None, detail)
    magic = header[: len(LIBVIRT_MAGIC)]
    if magic != LIBVIRT_MAGIC and magic != LIBVIRT_MAGIC_PARTIAL:
        raise stream_error("envelope.libvirt.magic", 0, None, f"the magic is {magic!r}")
    little = _WORDS["little"].unpack_from(header, _VERSION)
    big = _WORDS["big"].unpack_from(header, _VERSION)
    if little[0] in _VERSIONS:
        return "little", little
    if big[0] in _VERSIONS:
        return "big", big
    detail = f"version {little[0]}, or in the other byte order {big[0]}"
    raise stream_error("envelope.libvirt.version", _VERSION, None, detail)


def stream_offset(header: bytes) -> int:
    """Where the stream begins in a file that begins with ``header``, of at least 92 bytes.

    Raises ``StreamError`` (``envelope.libvirt.*``, ``limit.libvirt-data``).
    """
    length = _words(header)[1][1]
    if not length:
        raise stream_error("envelope.libvirt.data-length", _LENGTH, None, "no domain XML")
    if length > LIMIT_LIBVIRT_DATA:
        detail = f"{length} bytes of domain XML, above {LIMIT_LIBVIRT_DATA}"
        raise stream_error("limit.libvirt-data", _LENGTH, None, detail)
    return LIBVIRT_HEADER_SIZE + length


def _text(data: bytes, start: int, end: int, what: str, findings: list[Finding]) -> str:
    """The text at ``start``, in bytes up to ``end``."""
    raw, nul, _ = data[start:end].partition(b"\0")
    text = raw.decode("utf-8", "surrogateescape")
    wrong = None if nul else "does not end with a NUL"
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"is not UTF-8 from offset {start + error.start} on"
    if wrong is not None:
        findings.append(Finding(start, "envelope.libvirt.text", None, f"the {what} {wrong}"))
    return text


def read(data: bytes) -> LibvirtImage:
    """The image whose first ``stream_offset`` bytes, or all there are, ``data`` begins with.

    Raises ``StreamError`` (``envelope.libvirt.*``, ``limit.libvirt-data``).
    """
    end = stream_offset(data)
    byte_order, (version, _, was_running, number, cookie_offset) = _words(data)
    format = LIBVIRT_FORMATS[0]
    if version == LIBVIRT_VERSION_2:
        if number >= len(LIBVIRT_FORMATS):
            raise stream_error("envelope.libvirt.format", _FORMAT, None, f"format {number}")
        format = LIBVIRT_FORMATS[number]
    cookie_at = LIBVIRT_HEADER_SIZE + cookie_offset
    if cookie_at > end:
        detail = f"cookie at {cookie_offset} of {end - LIBVIRT_HEADER_SIZE} bytes"
        raise stream_error("envelope.libvirt.cookie-offset", _COOKIE, None, detail)
    if len(data) < end:
        detail = f"the input ends before the stream, which begins at {end}"
        raise stream_error("envelope.libvirt.truncated", len(data), None, detail)
    complete = data.startswith(LIBVIRT_MAGIC)
    findings = []
    if not complete:
        detail = "libvirt did not finish the image"
        findings.append(Finding(0, "envelope.libvirt.partial", None, detail))
    xml_end = cookie_at if cookie_offset else end
    return LibvirtImage(
        complete=complete,
        byte_order=byte_order,
        version=version,
        was_running=bool(was_running),
        format=format,
        stream_offset=end,
        domain_xml=_text(data, LIBVIRT_HEADER_SIZE, xml_end, "domain XML", findings),
        cookie=_text(data, cookie_at, end, "cookie", findings) if cookie_offset else None,
        findings=tuple(findings),
    )


def build(
    domain_xml: str,
    cookie: str | None = None,
    *,
    was_running: bool = False,
    format: str = "raw",
    complete: bool = True,
    byte_order: ByteOrder = sys.byteorder,
) -> bytes:
    """All that lies before the stream, in version 2, with libvirt's padding.

    A writer that may fail begins with ``complete`` false, and puts the whole magic there when the
    stream is.  Raises ``ValueError`` for an unknown format, and for a text with a NUL or too long.
    """
    if format not in LIBVIRT_FORMATS:
        raise ValueError(f"{format!r} is no format of a save image")
    texts = [t.encode("utf-8", "surrogateescape") for t in (domain_xml, cookie) if t is not None]
    if any(b"\0" in text for text in texts):
        raise ValueError("a NUL ends the text")
    data = b"".join(text + b"\0" for text in texts) + bytes(LIBVIRT_PADDING)
    if len(data) > LIMIT_LIBVIRT_DATA:
        raise ValueError(f"more than {LIMIT_LIBVIRT_DATA} bytes of text")
    words = _WORDS[byte_order].pack(
        LIBVIRT_VERSION_2,
        len(data),
        was_running,
        LIBVIRT_FORMATS.index(format),
        0 if cookie is None else len(texts[0]) + 1,
    )
    magic = LIBVIRT_MAGIC if complete else LIBVIRT_MAGIC_PARTIAL
    return (magic + words).ljust(LIBVIRT_HEADER_SIZE, b"\0") + data
