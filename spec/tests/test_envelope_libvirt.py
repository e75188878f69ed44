"""Save images of libvirt written out byte by byte, and every rule about them."""

from struct import pack

import pytest

from savevm_spec.envelope.libvirt import Text, build, parse
from savevm_spec.errors import GrammarError
from savevm_spec.rules import rules

XML = b"<domain type='qemu'>\n  <name>\xc3\xa4</name>\n</domain>\n"
COOKIE = b"<cookie/>\n"
STREAM = b"QEVM\0\0\0\3\0"
LITTLE, BIG = "<5I56x", ">5I56x"


def image(
    text: bytes,
    *,
    magic: bytes = b"LibvirtQemudSave",
    order: str = LITTLE,
    version: int = 2,
    length: int | None = None,
    format: int = 0,
    cookie: int = 0,
) -> bytes:
    length = len(text) if length is None else length
    return magic + pack(order, version, length, 1, format, cookie) + text


@pytest.mark.parametrize(("order", "name"), [(LITTLE, "little"), (BIG, "big")])
@pytest.mark.parametrize("version", [1, 2])
def test_an_image_both_ways(order: str, name: str, version: int) -> None:
    text = XML + b"\0" + COOKIE + bytes(100)
    data = image(text, order=order, version=version, format=3, cookie=len(XML) + 1) + STREAM
    value, findings = parse(data)
    assert findings == []
    assert value.header.byte_order == name
    assert (value.header.version, value.header.was_running, value.header.format) == (version, 1, 3)
    assert value.domain_xml == Text(XML.decode())
    assert value.cookie == Text(COOKIE.decode(), bytes(99))
    assert value.stream == STREAM
    assert build(value) == data


def test_lengths_follow_the_texts() -> None:
    value, _ = parse(image(XML + b"\0" + bytes(512)) + STREAM)
    assert value.cookie is None
    value.cookie = Text("<cookie/>", bytes(64))
    value.domain_xml = Text("<domain/>")
    text = b"<domain/>\0<cookie/>" + bytes(65)
    assert build(value) == image(text, cookie=10) + STREAM


def test_the_format_is_of_version_2() -> None:
    data = image(XML + b"\0", version=1, format=99)
    assert build(parse(data)[0]) == data


WHOLE = image(XML + b"\0")


@pytest.mark.parametrize(
    ("rule", "offset", "data"),
    [
        ("envelope.libvirt.truncated", 91, WHOLE[:91]),
        ("envelope.libvirt.truncated", len(WHOLE) - 1, WHOLE[:-1]),
        ("envelope.libvirt.truncated", 99, image(b"", length=8, cookie=7) + b"<a></a>"),
        ("envelope.libvirt.magic", 0, image(XML + b"\0", magic=b"LibvirtQemudBoot")),
        ("envelope.libvirt.version", 16, image(XML + b"\0", version=3)),
        ("envelope.libvirt.version", 16, image(XML + b"\0", version=3, order=BIG)),
        ("envelope.libvirt.version", 16, image(XML + b"\0", version=0)),
        ("envelope.libvirt.data-length", 20, image(b"")),
        ("limit.libvirt-data", 20, image(XML + b"\0", length=(16 << 20) + 1)),
        ("envelope.libvirt.format", 28, image(XML + b"\0", format=7)),
        ("envelope.libvirt.cookie-offset", 32, image(XML + b"\0", cookie=len(XML) + 2)),
    ],
)
def test_errors(rule: str, offset: int, data: bytes) -> None:
    with pytest.raises(GrammarError) as error:
        parse(data)
    assert (error.value.rule, error.value.offset) == (rule, offset)
    assert error.value.errno == rules()[rule].errno


@pytest.mark.parametrize(
    ("rule", "offset", "data"),
    [
        ("envelope.libvirt.partial", 0, image(XML + b"\0", magic=b"LibvirtQemudPart")),
        ("envelope.libvirt.text", 92, image(XML)),
        ("envelope.libvirt.text", 92, image(b"<\xff>\0")),
        ("envelope.libvirt.text", 96, image(b"<a>\0<b>", cookie=4)),
    ],
)
def test_findings(rule: str, offset: int, data: bytes) -> None:
    value, findings = parse(data)
    assert findings == [(rule, offset, None)]
    assert build(value) == data


def test_every_truncation_is_noticed() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(GrammarError) as error:
            parse(WHOLE[:length])
        assert (error.value.rule, error.value.offset) == ("envelope.libvirt.truncated", length)
