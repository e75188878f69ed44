"""The save image of libvirt: ``virsh save``, managed save, the memory of external snapshots.

A header of 92 bytes, with integers in the byte order of the host that wrote it; then the text: the
domain XML, perhaps a cookie, zeros to let both grow; then the stream, compressed as ``format`` says.
Origin: virQEMUSaveDataWrite and qemuSaveImageReadHeader of libvirt.
"""

import io
from typing import Any, BinaryIO, NamedTuple

from construct import (
    Adapter,
    Bytes,
    FixedSized,
    GreedyBytes,
    If,
    IfThenElse,
    Int32ub,
    Int32ul,
    Rebuild,
    Struct,
    this,
)

from ..combinators import Node, Noted, Reported, Whole, held
from ..constants import (
    LIBVIRT_FORMATS,
    LIBVIRT_HEADER_SIZE,
    LIBVIRT_MAGIC,
    LIBVIRT_MAGIC_PARTIAL,
    LIBVIRT_VERSION_1,
    LIBVIRT_VERSION_2,
    LIMIT_LIBVIRT_DATA,
)
from ..reading import Finding, Reading

_VERSIONS = LIBVIRT_VERSION_1, LIBVIRT_VERSION_2
_WORDS = {"little": Int32ul, "big": Int32ub}


class Text(NamedTuple):
    """A text, and what lies between it and the next: ``padding`` is None if no NUL ends it."""

    text: str
    padding: bytes | None = b""


class _Text(Adapter):  # type: ignore[misc]
    def _decode(self, obj: bytes, context: Any, path: str) -> Text:
        text, nul, padding = obj.partition(b"\0")
        return Text(text.decode("utf-8", "surrogateescape"), padding if nul else None)

    def _encode(self, obj: Text, context: Any, path: str) -> bytes:
        text = obj.text.encode("utf-8", "surrogateescape")
        return text if obj.padding is None else text + b"\0" + obj.padding


def _fine(text: Text) -> bool:
    return text.padding is not None and not any("\udc80" <= c <= "\udcff" for c in text.text)


def _text(length: Any) -> Any:
    """A text in ``length`` bytes, what is no UTF-8 as surrogates."""
    return Reported("envelope.libvirt.text", _Text(Bytes(length)), _fine)


class _Word(Node):
    """A u32 in the byte order that the context has."""

    def _parse(self, stream: BinaryIO, context: Any, path: str) -> Any:
        return _WORDS[context.byte_order]._parsereport(stream, context, path)

    def _build(self, obj: Any, stream: BinaryIO, context: Any, path: str) -> Any:
        return _WORDS[context.byte_order]._build(obj, stream, context, path)


def _byte_order(header: Any) -> str:
    """That in which the version, which comes next, is one."""
    start = header._io.tell()
    version = header._io.read(4)
    header._io.seek(start)
    return "big" if int.from_bytes(version, "big") in _VERSIONS else "little"


def _size(text: Text | None) -> int:
    return 0 if text is None else len(_Text(GreedyBytes).build(text))


def _data_length(header: Any) -> int:
    return _size(header._.domain_xml) + _size(header._.cookie)


def _cookie_offset(header: Any) -> int:
    return 0 if header._.cookie is None else _size(header._.domain_xml)


Magic = Reported(
    "envelope.libvirt.partial",
    held(
        "envelope.libvirt.magic",
        Bytes(len(LIBVIRT_MAGIC)),
        lambda magic, _: magic in (LIBVIRT_MAGIC, LIBVIRT_MAGIC_PARTIAL),
    ),
    lambda magic: magic == LIBVIRT_MAGIC,
)

DataLength = held(
    "limit.libvirt-data",
    held("envelope.libvirt.data-length", _Word(), lambda length, _: length > 0),
    lambda length, _: length <= LIMIT_LIBVIRT_DATA,
)

Format = held("envelope.libvirt.format", _Word(), lambda number, _: number < len(LIBVIRT_FORMATS))
"""Index in ``LIBVIRT_FORMATS``."""

CookieOffset = held(
    "envelope.libvirt.cookie-offset", _Word(), lambda offset, header: offset <= header.data_length
)

Header = FixedSized(
    LIBVIRT_HEADER_SIZE,
    Struct(
        "magic" / Magic,
        "byte_order" / Noted(_byte_order),
        "version"
        / held("envelope.libvirt.version", _Word(), lambda version, _: version in _VERSIONS),
        "data_length" / Rebuild(DataLength, _data_length),
        "was_running" / _Word(),
        "format" / IfThenElse(this.version == LIBVIRT_VERSION_2, Format, _Word()),
        "cookie_offset" / Rebuild(CookieOffset, _cookie_offset),
        "unused" / GreedyBytes,
    ),
)
"""``data_length`` counts the text; ``cookie_offset`` is from the start of the text, 0 for none."""


def _xml_length(image: Any) -> int:
    return int(image.header.cookie_offset or image.header.data_length)


SaveImage = Struct(
    "header" / Whole("envelope.libvirt.truncated", Header),
    "domain_xml" / Whole("envelope.libvirt.truncated", _text(_xml_length)),
    "cookie"
    / If(
        this.header.cookie_offset,
        Whole(
            "envelope.libvirt.truncated",
            _text(lambda image: image.header.data_length - image.header.cookie_offset),
        ),
    ),
    "stream" / GreedyBytes,
)
"""The whole file; ``stream`` is as it is there, which is compressed if the format says so.

Building takes the lengths from the texts.
"""


def parse(data: bytes) -> tuple[Any, list[Finding]]:
    """The Containers of ``SaveImage``, and the broken rules; raises ``GrammarError``."""
    state = Reading()
    return SaveImage.parse_stream(io.BytesIO(data), reading=state), state.findings


def build(image: Any) -> bytes:
    """The bytes of a save image, from the values that ``parse`` gives."""
    data: bytes = SaveImage.build(image)
    return data
