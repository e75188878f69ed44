"""Layouts of devices that no stream describes: their data, their lengths, and which one is chosen."""

import json
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from itertools import product
from random import Random
from struct import pack
from typing import Any
from zlib import decompress

import pytest

from savevm_spec.devices import layouts, schemas
from savevm_spec.stream import Stream, build, parse, transcript

FILES = {
    path.name: json.loads(path.read_text("utf-8"))
    for path in files("savevm_spec.devices").iterdir()
    if path.name.endswith(".json") and path.name not in ("pointer_arrays.json", "riscv.json")
}
ENTRIES = [entry for data in FILES.values() for entry in data["layouts"]]


def each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


KEYS = sorted({key for e in ENTRIES for key in product(each(e["idstr"]), each(e["version"]))})
LAYOUTS = [(*key, number) for key in KEYS for number in range(len(schemas(*key)))]

# (idstr, version) → lengths of bodies that QEMU 0.8.1 to 1.0-rc2 wrote, i386 and x86_64.
MEASURED = {
    ("I440FX", 1): {261},
    ("I440FX", 2): {293},
    ("I440FX", 3): {277},
    ("PCIBUS", 1): {20},
    ("PIIX3", 1): {256},
    ("PIIX3", 2): {260, 276},
    ("PIIX3", 3): {292},
    ("apic", 1): {173},
    ("apic", 2): {181},
    ("apic", 3): {181},
    ("cirrus_vga", 1): {1594},
    ("cirrus_vga", 2): {1854, 1870},
    ("cpu", 3): {488},
    ("cpu", 4): {492},
    ("cpu", 7): {549, 925},
    ("cpu", 8): {773},
    ("cpu", 10): {797},
    ("cpu", 11): {1169},
    ("cpu", 12): {1313},
    ("cpu_common", 1): {8},
    ("dma", 1): {75},
    ("fdc", 1): {546},
    ("fdc", 2): {545},
    ("fw_cfg", 1): {4},
    ("fw_cfg", 2): {6},
    ("hpet", 1): {150},
    ("hpet", 2): {151},
    ("i2c_bus", 1): {1},
    ("i8254", 1): {88},
    ("i8254", 2): {104},
    ("i8259", 1): {15, 16},
    ("ide", 1): {1408, 1424},
    ("ide", 2): {1450},
    ("ide", 3): {1454, 132576, 525842},
    ("ioapic", 1): {194},
    ("ioapic", 3): {206},
    ("mc146818rtc", 1): {197},
    ("mc146818rtc", 2): {205},
    ("pckbd", 3): {4},
    ("piix4_pm", 1): {284, 300},
    ("piix4_pm", 2): {312, 324},
    ("port92", 1): {1},
    ("ps2kbd", 2): {280},
    ("ps2kbd", 3): {284},
    ("ps2mouse", 2): {291},
    ("rtl8139", 3): {638},
    ("rtl8139", 4): {638},
    ("serial", 1): {9},
    ("serial", 2): {10},
    ("serial", 3): {11},
    ("slirp", 3): {131},
    ("timer", 1): {16},
    ("timer", 2): {24},
    ("uhci", 1): {303},
    ("uhci", 2): {311},
    ("usb-ptr", 1): {298},
    ("virtio-balloon", 1): {332, 336},
    ("vmmouse", 0): {4105},
}

# What the fields hold on which others depend: the values of those bodies.
VALUES = {
    "config_len": 8,
    "elem_popped": 0,
    "fpregs_format": 0,
    "is_vbe": 1,
    "mac_table.in_use": 0,
    "mcg_cap": 0,
    "more": 0,
    "msix.cap_id": 0,
    "msix.last_entry": 0,
    "nirq": 4,
    "nr_active_ports": 1,
    "num_floppies": 2,
    "num_ports": 2,
    "num_queues": 2,
    "num_timers": 3,
    "sb_datalen": 64,
    "size": 64,
    "version_id": 2,
}
# Drives of the machines that wrote them: a disk and a CD-ROM, each the first of its bus.
IDENTIFIED = (1, 0, 1, 0)
OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "==": int.__eq__,
    "!=": int.__ne__,
    ">=": int.__ge__,
}

Scope = dict[str, int]


class Body:
    """A body that follows ``layout``.

    ``values`` are those of fields on which others depend, of each occurrence in turn if listed;
    ``fill`` gives the bytes of all others; each of ``carried`` is there once, where it may first.
    """

    def __init__(
        self,
        layout: dict[str, Any],
        values: dict[str, Any],
        fill: Callable[[int], bytes] = bytes,
        carried: tuple[str, ...] = (),
    ) -> None:
        self.values = {name: iter(each) for name, each in values.items() if type(each) is not int}
        self.constants = {name: each for name, each in values.items() if type(each) is int}
        self.fill = fill
        self.carried = [*carried]
        self.data = bytearray()
        self.state(layout, [])

    def state(self, layout: dict[str, Any], around: list[Scope]) -> None:
        scopes = [*around, {}]
        for field in layout["fields"]:
            if "if" in field:
                name, operator, number = field["if"]
                if not OPERATORS[operator](look_up(scopes, name), number):
                    continue
            count = resolved(field.get("array_len", 1), scopes)
            for _ in range(count):
                if "struct" in field:
                    self.state(field["struct"], scopes)
                else:
                    self.leaf(field, resolved(field["size"], scopes), scopes)
        for part in layout.get("subsections", ()):
            if part["vmsd_name"] in self.carried:
                self.carried.remove(part["vmsd_name"])
                name = part["vmsd_name"].encode()
                self.data += b"\x05" + bytes([len(name)]) + name + pack(">I", part["version"])
                self.state(part, scopes)

    def leaf(self, field: dict[str, Any], size: int, scopes: list[Scope]) -> None:
        name = field["name"]
        value = next(self.values[name]) if name in self.values else self.constants.get(name)
        if value is None or "buffer" in field["type"]:
            self.data += self.fill(size)
        else:
            scopes[-1][name] = value
            self.data += value.to_bytes(size, "big")


def look_up(scopes: list[Scope], name: str) -> int:
    return next(scope[name] for scope in reversed(scopes) if name in scope)


def resolved(number: int | str, scopes: list[Scope]) -> int:
    return number if isinstance(number, int) else look_up(scopes, number)


def lengths(layout: dict[str, Any]) -> Iterator[int]:
    for version_id, carried in product((1, 2), ((), ("ide_drive/pio_state",))):
        values = VALUES | {"version_id": version_id, "identify_set": IDENTIFIED}
        yield len(Body(layout, values, carried=carried).data)


@pytest.mark.parametrize(("idstr", "version"), MEASURED)
def test_bodies_have_the_lengths_that_were_measured(idstr: str, version: int) -> None:
    reached = {length for layout in schemas(idstr, version) for length in lengths(layout)}
    assert reached >= MEASURED[idstr, version]


def test_device_path() -> None:
    assert schemas("0000:00:01.1/ide", 3) == schemas("ide", 3) != ()
    assert schemas("ide", 4) == schemas("ide/", 3) == schemas("0000:00:01.1", 3) == ()


def fields_of(layout: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every field of a layout, with the fields before it: its own layout's, then those around."""

    def walk(part: dict[str, Any], around: list[dict[str, Any]]) -> Iterator[Any]:
        before: list[dict[str, Any]] = []
        for field in part["fields"]:
            yield field, [*before, *around]
            if "struct" in field:
                yield from walk(field["struct"], [*before, *around])
            before.append(field)
        for subsection in part.get("subsections", ()):
            yield from walk(subsection, [*before, *around])

    return walk(layout, [])


@pytest.mark.parametrize(("idstr", "version", "number"), LAYOUTS)
def test_fields_depend_on_what_is_before_them(idstr: str, version: int, number: int) -> None:
    for field, before in fields_of(schemas(idstr, version)[number]):
        names = [field["if"][0]] if "if" in field else []
        names += [n for n in (field.get("array_len"), field.get("size")) if isinstance(n, str)]
        for name in names:
            # The first of that name is there always, or under the same condition.
            first = next(other for other in before if other["name"] == name)
            assert "if" not in first or first["if"] == field.get("if"), (field["name"], name)
            assert "int" in first["type"]
            assert "array_len" not in first
            assert name in VALUES or name == "identify_set"


@pytest.mark.parametrize(("idstr", "version", "number"), LAYOUTS)
def test_no_number_in_a_body_stands_for_more_elements_than_bytes(
    idstr: str, version: int, number: int
) -> None:
    for field, _ in fields_of(schemas(idstr, version)[number]):
        if isinstance(field.get("array_len"), str) and "struct" in field:
            assert any(
                "if" not in inner and isinstance(inner.get("size"), int) and inner["size"] > 0
                for inner in field["struct"]["fields"]
            ), field["name"]


def test_every_layout_says_where_it_is_from() -> None:
    source = re.compile(r"(?:[\w./-]+\.[ch]:)?\w+@(?:v|qemu-kvm-|kvm-)\d[\w.]*")
    for entry in ENTRIES:
        for origin in entry["origin"].split(", "):
            assert source.fullmatch(origin), (entry["idstr"], origin)


def test_structs_have_one_meaning_and_a_use() -> None:
    names = Counter(name for data in FILES.values() for name in data["structs"])
    assert set(names.values()) == {1}
    text = json.dumps(list(FILES.values()))
    used = {*re.findall(r'"struct ([\w.]+)"', text), *re.findall(r'"fields": "([\w.]+)"', text)}
    assert used == set(names)


def test_idstrs_have_no_path() -> None:
    assert not any("/" in idstr for idstr, _ in KEYS)


def read(*sections: tuple[bytes, int, bytes]) -> Stream:
    records = b"".join(
        b"\x04" + pack(">IB", number, len(idstr)) + idstr + pack(">II", 0, version) + body
        for number, (idstr, version, body) in enumerate(sections)
    )
    data = b"QEVM" + pack(">I", 3) + records + b"\x00"
    stream = parse(data)
    assert stream.error is None, stream.error
    assert build(stream) == data
    return stream


@cache
def noise(size: int) -> bytes:
    return Random(size).randbytes(size)


ALTERNATIVES: list[dict[str, Any]] = [
    {},
    {
        "fpregs_format": 1,
        "msix.cap_id": 17,
        "msix.last_entry": 17,
        "mac_table.in_use": 3,
        "mcg_cap": 0x010A,
        "elem_popped": 1,
        "identify_set": (0, 1, 1, 1),
        "is_vbe": 0,
        "num_timers": 8,
        "more": (1, 1, 0),
        "num_queues": 3,
    },
]


@pytest.mark.parametrize("fill", [bytes, noise], ids=["zeros", "noise"])
@pytest.mark.parametrize("values", ALTERNATIVES, ids=["usual", "other"])
@pytest.mark.parametrize(("idstr", "version", "number"), LAYOUTS)
def test_of_several_layouts_the_right_one_is_found(
    idstr: str, version: int, number: int, values: dict[str, Any], fill: Callable[[int], bytes]
) -> None:
    layout = schemas(idstr, version)[number]
    body = bytes(Body(layout, VALUES | {"identify_set": IDENTIFIED} | values, fill).data)
    stream = read((idstr.encode(), version, body), (b"port92", 1, b"\x02"))
    _, found, behind, _ = transcript(stream)["records"]
    assert found["body"]["kind"] == behind["body"]["kind"] == "vmstate"
    assert found["body"]["length"] == len(body)
    assert behind["body"]["fields"] == [["outport", 2]]


SUBSECTIONS = [
    (idstr, version, part["vmsd_name"])
    for idstr, version in KEYS
    for part in [*schemas(idstr, version)[0].get("subsections", ())]
] + [
    ("ide", 3, "ide bmdma_current"),
    ("ide", 3, "ide bmdma/status"),
    ("ide", 3, "ide_bus/error"),
    ("ide", 3, "ide_drive/pio_state"),
    ("ide", 3, "ide_drive/tray_state"),
    ("ide", 3, "ide_drive/atapi/gesn_state"),
    ("fdc", 2, "fdrive/media_changed"),
]


@pytest.mark.parametrize(("idstr", "version", "name"), SUBSECTIONS)
def test_subsections_are_read_where_they_are(idstr: str, version: int, name: str) -> None:
    layout = schemas(idstr, version)[0]
    body = bytes(Body(layout, VALUES | {"identify_set": IDENTIFIED}, noise, (name,)).data)
    stream = read((idstr.encode(), version, body), (b"port92", 1, b"\x02"))
    found = transcript(stream)["records"][1]["body"]
    assert found["length"] == len(body)
    assert f'"name": "{name}"' in json.dumps(found)


# Bodies that QEMU r5434, 0.10.6, 0.14.1 and 1.0-rc2 wrote: zlib, base 64.
CPU_R5434 = (
    "eNpjYGDgYgAD5h9AQoGBoQbM+/+/VptBCsSqOc7AwMQEZLgw1zPQFPwHAobzk1FEGBhm86PyJxNQT4jfhMbvhrJr"
    "DYAEP6qLmP+juzGBgUGAZD8xyDcwDDTgQuExkqQXAGAkJ2M="
)
PIT_0_10 = "eNpjYGSAAGZmBmYmBghPIPcJiPqjemALnIapA6tF4qGKwwEAeSUGog=="
BALLOON_0_10 = "eNpjYGBg+iLFJMDIAAasIELxAANO8EWKFYXPzcgwDMEBBSQOBxKbCYgb4LwGVF0AD9oFEw=="
PIT_0_14 = "eNpjYGSAAGZmBmYmBghvos5DEJUzKyCeASYPVoPCgwIOhH6YUMnxQmQVIHMALu0G2A=="
CLOCK_0_14 = (
    "eNpzYOBkUGZgVBJUU2MSaGAAgg8MbA1MDDz6DEwMAv//n2BisGdABjwKIFLBAEQKMVAM+IFYA4g5gVgcKiYGxFxA"
    "XPcfCmCKJV41HInbdfYCjEaXBwC8HCG0"
)
PM_0_14 = "eNpjYGBgamsQLmRmaGACYjYGAuCLFIMgMp+TkYGBcQNO5UxAPAGIE4CYA5ciRnT+RgYKAScDNcB/KMAmBwD40A4j"
PM_1_0 = "eNpjYGBgamsQLmRmaGACYjYGAuCLFIMgMp+TkYGBcQNO5UxAPAGIE4CYA5ciRnT+RgYKAScDNcB/KCCkDgCigw4j"
IDE_1_0 = (
    "eNpjYGBgamsQKGBmaGBiaGBkZMACGA8g2F+kGAQxFDQA4YgDHAwcoNASAAWQAwMThFnHwGQPlfcNNAACBUMFJMAM"
    "DG0WBj0DU0NLPQUj18BQXw+FIEcXl2BPBW8FnECgAWgRN9BIJgYmdiAhwGDP8IAdaB8j0BEM7EDIzFABhdjBBwYx"
    "BkUHhhIGB0Ywaa8Aj9sENE8hQALDKCAJwDJPQgCUIQAXhuerAmQ5xgOtmKZA040x/nTjouASFqTr66+AB4CtZYaY"
    "yo5hDyTdbAFCHcYtYBE5IEQF6HxEuhkFVE0yDKtCGRgUMNMNXM4ALAcAMe4u+g=="
)


def state(idstr: str, version: int, packed: str) -> dict[str, Any]:
    """What the body of a real device holds, nested ones as dicts too."""
    stream = read((idstr.encode(), version, decompress(b64decode(packed))))
    read_: dict[str, Any] = values_of(transcript(stream)["records"][1]["body"])
    return read_


def values_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: values_of(each) for name, each in value["fields"]}
    return [values_of(each) for each in value] if isinstance(value, list) else value


def test_processor_of_r5434() -> None:
    cpu = state("cpu", 7, CPU_R5434)
    # A boot sector runs in real mode, with caches off, flat data segments and the A20 gate open.
    assert (cpu["eip"], cpu["regs"][4], cpu["cr[0]"]) == (0x7CC7, 0x7C00, 0x60000010)
    assert [segment["limit"] for segment in cpu["segs"]] == [
        0xFFFFFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFF, 0xFFFF
    ]  # fmt: skip
    assert cpu["gdt"] == {"selector": 0, "base": 0x7D30, "limit": 0xF, "flags": 0}
    assert (cpu["a20_mask"], cpu["mxcsr"], cpu["smbase"]) == (-1, 0x1F80, 0xA0000)


def test_interval_timer_of_0_10_and_0_14() -> None:
    old, new = state("i8254", 1, PIT_0_10), state("i8254", 2, PIT_0_14)
    assert old["channels[0]"]["count"] == new["channels"][0]["count"] == 0x10000
    assert old["channels[0]"]["next_transition_time"] == old["channels[0].irq_timer"] != 0
    assert new["channels"][0]["next_transition_time"] == new["channels[0].irq_timer"] != 0
    assert [channel["mode"] for channel in new["channels"]] == [2, 3, 0]


def test_clock_of_0_14() -> None:
    clock = state("mc146818rtc", 2, CLOCK_0_14)
    # Register 9 of the clock is the year in BCD, of a century that starts at 1900.
    assert clock["cmos_data"][18:20] == "26"
    assert clock["current_tm.tm_year"] == 126
    assert clock["next_second_time"] == clock["second_timer"] != 0
    assert clock["periodic_timer"] == clock["second_timer2"] == -1


def test_power_management_of_0_14_and_1_0() -> None:
    for packed, words in (PM_0_14, 1), (PM_1_0, 4):
        pm = state("0000:00:01.3/piix4_pm", 2, packed)
        assert pm["dev"]["config"].startswith("86801371")
        assert pm["gpe.sts"] == pm["gpe.en"] == [0] * words
        assert pm["tmr.timer"] == -1


def test_balloon_of_0_10() -> None:
    balloon = state("virtio-balloon", 1, BALLOON_0_10)["vdev"]
    assert balloon["pci_dev"]["config"].startswith("f41a0210")
    assert balloon["addr"] == 0xC020
    assert [queue["vring.num"] for queue in balloon["vq"]] == [128, 128]


def test_drives_of_1_0() -> None:
    ide = state("0000:00:01.1/ide", 3, IDE_1_0)
    assert ide["dev"]["config"].startswith("86801070")
    disk, nothing, cdrom, _ = ide["drives"]
    # ATA IDENTIFY: a fixed disk and a removable packet device, strings with swapped bytes.
    assert disk["identify_data"].startswith("4000")
    assert cdrom["identify_data"].startswith("c085")
    assert bytes.fromhex(disk["identify_data"])[54:66] == b"EQUMH RADDSI"
    assert "identify_data" not in nothing


def test_no_stream_is_read_by_the_layouts_of_a_board_unasked() -> None:
    for idstr, layout in layouts("riscv", "11.1", harts=1).items():
        assert all(known != layout for known in schemas(idstr, layout["version"]))
    assert schemas("riscv_mtimer", 1) == schemas("slirp", 4) == ()


@pytest.mark.parametrize("release", ["5.2", "7.2", "10.0", "11.1"])
def test_arrays_of_a_board_are_as_long_as_there_are_harts(release: str) -> None:
    def elements(harts: int) -> dict[str, int | None]:
        fields = layouts("riscv", release, harts=harts).get("riscv_mtimer", {"fields": []})[
            "fields"
        ]
        return {field["name"]: field.get("array_len") for field in fields}

    assert set(elements(1).values()) <= {None}
    assert elements(3) == {name: None if name == "time_delta" else 3 for name in elements(1)}
    with pytest.raises(KeyError):
        layouts("riscv", "9.0")
