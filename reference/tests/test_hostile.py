"""Streams that must not be trusted, against the board: refused with a rule, and nothing runs."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from movers import told
from qemus import Qemu
from wires import no_hang  # noqa: F401

from savevm.errors import StreamError
from savevm.machine import layouts
from savevm.machine.spike import Spike
from savevm.migration.board import Describe
from savevm.migration.incoming import Incoming
from savevm.migration.outgoing import Outgoing
from savevm.migration.spike import Arrival, describer
from savevm.savevm import Device, Registry

MEMORY = 1 << 20
RELEASES = ("5.2", "7.2", "10.0", "11.1")


def board() -> Spike:
    """One that has computed a little, from what is in its ROM."""
    spike = Spike(MEMORY, deterministic=0)
    spike.ram.write(0x2000, random.Random(1).randbytes(3 * 4096))
    spike.resume()
    spike.step(500)
    spike.stop()
    return spike


def written(source: Spike, release: str, path: Path, describe: Describe | None = None) -> bytes:
    """What a board sends."""
    going = Outgoing(source, told(x_release=release), describe or describer(source))
    asyncio.run(going.run(f"file:{path}"))
    assert going.status == "completed", going.error
    return path.read_bytes()


def load(stream: bytes, target: Spike, path: Path) -> Incoming:
    path.write_bytes(stream)
    target.set_runstate("inmigrate")
    coming = Incoming(target, told(), lambda: Arrival(target), autostart=False)
    asyncio.run(coming.run(f"file:{path}"))
    assert not target.running
    return coming


def refused(stream: bytes, target: Spike, path: Path) -> str:
    """The rule that a stream breaks; empty where it is taken."""
    before = target.state()
    coming = load(stream, target, path)
    if coming.status == "completed":
        return ""
    assert (coming.status, target.runstate) == ("failed", "inmigrate")
    assert isinstance(coming.cause, StreamError), coming.cause
    assert target.state().harts == before.harts
    return coming.cause.rule


def mutations(good: bytes, count: int) -> list[bytes]:
    """Cut all over, and with bits flipped: anywhere, in the beginning, and most in the devices."""
    rng = random.Random(len(good))
    devices = good.rindex(b"\5timer") if b"\5timer" in good else len(good) // 2
    end = good.rindex(b'{"')
    streams = [good[:cut] for cut in range(0, len(good) - 1, max(1, len(good) // 60))]
    for _ in range(count):
        bad = bytearray(good)
        first, behind = rng.choice(((0, 200), (devices, end), (devices, end), (0, len(good))))
        for _ in range(rng.choice((1, 1, 4))):
            at = rng.randrange(first, behind)
            bad[at] = rng.choice((bad[at] ^ 1 << rng.randrange(8), 0, 0xFF))
        streams.append(bytes(bad))
    return streams


@pytest.mark.parametrize("release", RELEASES)
def test_what_a_reference_wrote(release: str, tmp_path: Path) -> None:
    good = written(board(), release, tmp_path / "good")
    target = Spike(MEMORY, deterministic=0)
    assert refused(good, target, tmp_path / "stream") == ""
    rules = {refused(bad, target, tmp_path / "stream") for bad in mutations(good, 150)}
    assert len(rules) > 8, rules
    # It is as good as before.
    assert refused(good, target, tmp_path / "stream") == ""


def test_what_qemu_wrote(tmp_path: Path) -> None:
    with Qemu(tmp_path, "-nic", "none") as qemu:
        qemu.execute("migrate", uri="exec:cat > part && mv part good")
        assert qemu.migration()["status"] == "completed"
        while not (tmp_path / "good").exists():
            pass
    good = (tmp_path / "good").read_bytes()
    target = Spike(16 << 20, deterministic=0)
    assert refused(good, target, tmp_path / "stream") == ""
    rules = {refused(bad, target, tmp_path / "stream") for bad in mutations(good, 60)}
    assert len(rules) > 5, rules


@pytest.mark.parametrize("release", RELEASES)
def test_registers_of_no_width(release: str, tmp_path: Path) -> None:
    """MXL of misa is 0, at which QEMU 7.2 and later abort."""
    source = board()

    def describe(*_: Any) -> Registry:
        registry = layouts.registry(source, release)
        cpu = registry.find("cpu", 0)
        assert isinstance(cpu, Device)
        save = cpu.save

        def bad() -> Any:
            state = save()
            for field in state["fields"]:
                if field[0] in ("env.misa", "env.misa_mxl"):
                    field[1] = 0
            return state

        cpu.save = bad  # type: ignore[method-assign]
        return registry

    stream = written(source, release, tmp_path / "bad", describe)
    target = Spike(MEMORY, deterministic=0)
    assert refused(stream, target, tmp_path / "stream") == "device.riscv-cpu.misa-mxl"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda data: data.replace(b"riscv.spike.ram", b"riscv.spike.rom"), "ram.block.unknown"),
        (lambda data: _resized(data, -4096), "ram.block.size"),
        (lambda data: _resized(data, 4096), "ram.block.size"),
        (
            lambda data: data[:8] + b"\7\0\0\0\4virt" + data[18:],
            "configuration.machine.differs",
        ),
        (lambda data: data.replace(b"\5timer", b"\5timex", 1), "section.unknown"),
        (lambda data: b"QEVN" + data[4:], "header.magic"),
        (lambda data: b"", "header.truncated"),
        (lambda data: data[:40], "ram.truncated"),
    ],
)
def test_what_does_not_fit(change: Any, rule: str, tmp_path: Path) -> None:
    good = written(board(), "11.1", tmp_path / "good")
    assert refused(change(good), Spike(MEMORY, deterministic=0), tmp_path / "stream") == rule


def _resized(data: bytes, more: int) -> bytes:
    """The list of blocks with another size of the first one, and another total."""
    at = data.index(b"\x0friscv.spike.ram")
    total = int.from_bytes(data[at - 8 : at], "big") + more
    size = int.from_bytes(data[at + 16 : at + 24], "big") + more
    return (
        data[: at - 8]
        + total.to_bytes(8, "big")
        + data[at : at + 16]
        + size.to_bytes(8, "big")
        + data[at + 24 :]
    )
