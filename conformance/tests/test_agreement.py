"""Grammar and reference say the same of broken streams, down to the offset."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from savevm_conformance.adapters import reference, spec
from savevm_conformance.locate import vectors_directory
from savevm_conformance.transcripts import difference

# Small and unlike each other: cut at every byte they take a few seconds together.
CUT = (
    "stream/accept/tricore-5.2",
    "stream/accept/tricore-10.0",
    "stream/accept/avr-5.2",
    "stream/accept/avr-7.2",
    "stream/accept/avr-10.0",
    "stream/accept/avr-11.1",
    "stream/accept/nios2",
    "command/accept/return-path-7.2",
    "command/accept/return-path-10.0",
    "storage-attributes/accept/s390x-7.2",
    "ram/accept/v2-record",
    "ram/accept/v2-section",
    "ram/accept/v3-live",
    "block/accept/disks",
    "vmstate/accept/known-devices",
    "vmstate/accept/known-cpu-x86-64",
    "vmstate/accept/known-count-and-nested-subsection",
    "legacy/accept/v2-cpu",
)


def stream(id: str) -> bytes:
    return (vectors_directory() / id / "stream.bin").read_bytes()


@pytest.mark.parametrize("id", CUT)
def test_cut_at_every_byte(id: str) -> None:
    data = stream(id)
    whole = reference.transcribe(data)
    assert whole["error"] is None
    # A VMDESCRIPTION is optional, so a stream that ends behind its EOF mark is whole.
    optional = {record["offset"] + 1 for record in whole["records"] if record["record"] == "eof"}
    for length in range(len(data)):
        errors = [one.transcribe(data[:length])["error"] for one in (reference, spec)]
        assert errors[0] == errors[1], length
        if length in optional:
            assert errors[0] is None
        else:
            assert errors[0] is not None, length
            assert errors[0]["offset"] <= length


def test_without_footers_and_description_a_cut_may_go_unnoticed() -> None:
    """The one kind of stream that does not say where it ends: only its last byte can be wrong."""
    data = stream("legacy/accept/pseries-2.1")
    for length in range(len(data) - 1000, len(data)):
        cut = data[:length]
        error = reference.transcribe(cut)["error"]
        assert error == spec.transcribe(cut)["error"]
        assert (error is None) == (cut[-1] == 0)


def test_fields_of_no_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A description can make every short section many fields long."""
    for module in ("savevm.vmstate", "savevm_spec.vmstate"):
        monkeypatch.setattr(f"{module}.LIMIT_VMSTATE_FIELDS", 1000)
    field = {"name": "f", "type": "buffer", "size": 0}
    device = {"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [field] * 90}
    text = json.dumps({"page_size": 4096, "devices": [device]}).encode()
    section = b"\4\0\0\0\1\1d" + bytes(7) + b"\1" + b"\x7e\0\0\0\1"
    data = b"QEVM\0\0\0\3" + 20 * section + b"\0\6" + len(text).to_bytes(4, "big") + text
    errors = [one.transcribe(data)["error"] for one in (reference, spec)]
    assert errors[0] == errors[1]
    assert errors[0]["rule"] == "limit.vmstate-fields"
    assert errors[0]["offset"] == 8 + 11 * len(section) + len(section) - 5


def test_a_page_word_that_ends_the_input() -> None:
    """Nothing shows the page size, so 4096 counts, and the flags are looked at before the name."""
    ram = b"\1\0\0\0\2\3ram" + bytes(7) + b"\4"
    listed = (4096 | 4).to_bytes(8, "big") + b"\1r" + (4096).to_bytes(8, "big")
    data = b"QEVM\0\0\0\3" + ram + listed + (0x302).to_bytes(8, "big")
    errors = [one.transcribe(data)["error"] for one in (reference, spec)]
    assert errors[0] == errors[1]
    assert (errors[0]["rule"], errors[0]["offset"]) == ("ram.flags.combination", len(data) - 8)


def test_pieces_of_a_disk() -> None:
    """They have a MiB each, which is too much for a vector."""
    one, other = random.Random(1).randbytes(1 << 20), bytes(1 << 20)
    disk = b"\4hda1"
    words = [(4096 << 9 | 1).to_bytes(8, "big") + disk + one, (9).to_bytes(8, "big") + disk]
    words += [(2048 << 9 | 1).to_bytes(8, "big") + disk + other, (100 << 9 | 4).to_bytes(8, "big")]
    section = b"\1\0\0\0\1\5block" + bytes(7) + b"\1"
    data = b"QEVM\0\0\0\3" + section + b"".join(words) + (2).to_bytes(8, "big") + b"\0"
    ours, theirs = reference.transcribe(data), spec.transcribe(data)
    assert difference(ours, theirs) is None
    body = ours["records"][1]["body"]
    digest = sha256((4096).to_bytes(8, "big") + one + bytes(8) + (2048).to_bytes(8, "big") + other)
    assert body["devices"] == {
        "hda1": {"normal": 2, "zero": 1, "sha256": digest.hexdigest()},
    }
    assert body["progress"] == [100]
    assert reference.rebuild(data) == spec.rebuild(data) == data


def edit(data: bytes, randomness: random.Random) -> bytes:
    """One random edit: a flipped bit, another byte, or some bytes dropped, doubled or moved."""
    at = randomness.randrange(len(data))
    end = at + randomness.choice((1, 4, 8, 64))
    match randomness.randrange(5):
        case 0:
            return data[:at] + bytes((data[at] ^ 1 << randomness.randrange(8),)) + data[at + 1 :]
        case 1:
            return data[:at] + bytes((randomness.randrange(256),)) + data[at + 1 :]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:end] + data[at:]
        case _:
            other = randomness.randrange(len(data))
            return data[:other] + data[at:end] + data[other:]


@pytest.mark.parametrize("seed", range(4))
def test_random_edits_of_every_vector(seed: int) -> None:
    randomness = random.Random(seed)
    streams = [path.read_bytes() for path in sorted(vectors_directory().glob("*/*/*/stream.bin"))]
    streams = [data for data in streams if 0 < len(data) < 20_000]
    rules: Counter[str] = Counter()
    for _ in range(1000):
        data = edit(randomness.choice(streams), randomness)
        ours, theirs = reference.transcribe(data), spec.transcribe(data)
        assert ours["error"] == theirs["error"], data
        assert ours["findings"] == theirs["findings"], data
        if ours["error"] is None:
            assert difference(ours, theirs) is None, data
        rules[ours["error"]["rule"] if ours["error"] else "none"] += 1
    assert len(rules) > 25


def qemus() -> list[str]:
    """Machines of the QEMUs at hand: SAVEVM_QEMU (a binary or a directory), or those on PATH."""
    named = os.environ.get("SAVEVM_QEMU")
    if named and Path(named).is_file():
        return [named]
    found = []
    for target in ("avr", "riscv64", "x86_64", "tricore"):
        path = shutil.which(f"qemu-system-{target}", path=named)
        if path:
            found.append(path)
    return found


def capture(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "savevm.cli", "capture", "--no-compress", "-o", str(directory)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


def check(path: Path) -> None:
    """Both accept the stream, say the same of it, and rebuild it."""
    data = path.read_bytes()
    ours, theirs = reference.transcribe(data), spec.transcribe(data)
    assert ours["error"] is None
    assert difference(json.loads(json.dumps(ours)), json.loads(json.dumps(theirs))) is None
    assert reference.rebuild(data) == data
    assert spec.rebuild(data) == data


def test_a_length_that_contains_a_brace(tmp_path: Path) -> None:
    """Readers that search for the first brace of the JSON stumble over this machine of QEMU 7.2."""
    binary = shutil.which("qemu-system-x86_64", path=os.environ.get("SAVEVM_QEMU"))
    if binary is None:
        pytest.skip("no real QEMU: no qemu-system-x86_64 on PATH or in SAVEVM_QEMU")
    capture(tmp_path, "--machine=pc-i440fx-2.12", "--memory=64", binary)
    paths = list(tmp_path.glob("*.bin"))
    if not paths:
        pytest.skip("this QEMU has no machine pc-i440fx-2.12")
    check(paths[0])
    data = paths[0].read_bytes()
    at = reference.transcribe(data)["records"][-1]["offset"]
    if "_7.2." in paths[0].name or paths[0].name.startswith("7.2"):
        assert b"{" in data[at + 1 : at + 5]


def test_what_a_real_qemu_writes_now(tmp_path: Path) -> None:
    binaries = qemus()
    if not binaries:
        pytest.skip("no real QEMU: none on PATH, and SAVEVM_QEMU names none")
    machines = ["--machine=isapc", "--machine=microvm", "--machine=spike", "--machine=arduino-uno"]
    done = capture(tmp_path, *machines, *binaries)
    assert done.returncode == 0, done.stderr
    streams = sorted(tmp_path.glob("*.bin"))
    assert streams
    for path in streams:
        check(path)
