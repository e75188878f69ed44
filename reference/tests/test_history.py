"""Streams that QEMUs of 2006 to 2011 wrote, loaded into a machine."""

import errno
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from savevm.channel import Channel
from savevm.errors import StreamError
from savevm.ram import RamBlock
from savevm.savevm import Device, Live, LoadError, Ram, Registry, load
from savevm.transcript import transcribe
from savevm.transport.memory import MemoryInput

STREAMS = sorted(Path(os.environ.get("SAVEVM_STREAMS", "/nonexistent")).glob("history-*.bin.xz"))


class BySchema(Device):
    """A device of the time: takes over whatever state it is given."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(record["idstr"], record["instance_id"], version_id=record["version_id"])
        self.state: dict[str, Any] = {}

    def layout(self, version_id: int) -> None:
        return None

    def load(self, state: Any, version_id: int) -> None:
        self.state = dict(state["fields"])


def machine(transcript: dict[str, Any]) -> Registry:
    """A machine that has what the stream has."""
    registry = Registry()
    registry.register(Ram([RamBlock(b["idstr"], b["used_length"]) for b in transcript["ram"]]))
    for record in transcript["records"]:
        if record.get("idstr") == "block" and record["record"] == "section-start":
            registry.register(Live("block"))
        elif record["record"] in ("section-full", "record") and record["idstr"] != "ram":
            registry.register(BySchema(record))
    return registry


@pytest.mark.skipif(not STREAMS, reason="SAVEVM_STREAMS names no folder with history-*.bin.xz")
@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.name.partition(".bin")[0])
def test_an_old_stream_loads_with_what_the_guest_had_in_its_ram(path: Path) -> None:
    data = lzma.decompress(path.read_bytes())
    registry = machine(transcribe(data))
    channel = Channel(MemoryInput(data))
    if data[7] == 1:
        with pytest.raises(LoadError, match="nothing was changed") as caught:
            load(registry, channel)
        assert isinstance(caught.value.cause, StreamError)
        assert caught.value.cause.errno == errno.ENOTSUP
        return
    loader = load(registry, channel)
    assert loader.missing == loader.warnings == []
    ram = registry.find("ram", 0)
    assert isinstance(ram, Ram)
    view = ram.blocks[0].view
    words = view[0x100000:0x140000].cast("I")
    assert all(word == (0x100000 + 4 * i) ^ 0x5A5A5A5A for i, word in enumerate(words))
    for page in range(64):
        start = 0x200000 + 4096 * page
        assert view[start : start + 4096] == bytes((0x80 + page,)) * 4096
    assert view[0x180000:0x180004] == b"QCNT"
    counter = int.from_bytes(view[0x180004:0x180008], "little")
    for i in range(16):
        at = 0x190000 + 4096 * i
        assert int.from_bytes(view[at : at + 4], "little") == counter + i
    cpu = registry.find("cpu", 0)
    assert isinstance(cpu, BySchema)
    # The guest's code was loaded by the BIOS.
    assert 0x7C00 <= cpu.state["eip"] < 0x7E00
