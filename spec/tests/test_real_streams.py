"""Streams that real QEMUs have written: all are read without error and built again.

SAVEVM_STREAMS names a directory with them, as *.bin or *.bin.xz.
"""

import lzma
import os
from pathlib import Path

import pytest

from savevm_spec.stream import build, parse, transcript

DIRECTORY = os.environ.get("SAVEVM_STREAMS")
STREAMS = sorted(Path(DIRECTORY).rglob("*.bin*")) if DIRECTORY else []


@pytest.mark.skipif(not STREAMS, reason="SAVEVM_STREAMS names no directory with *.bin or *.bin.xz")
@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.name)
def test_stream(path: Path) -> None:
    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    stream = parse(data)
    assert stream.error is None
    assert build(stream) == data
    assert transcript(stream)["records"][0]["record"] == "header"
