"""The live section "block" (version 1, 0.12 to 9.0): the contents of disks, in MiB.

be64 words of sector << 9 | flags.  Behind DEVICE stand a u8 length, the name of the disk and, unless
ZERO goes with it, 1 MiB of its data; the sector of PROGRESS is a percentage, and EOS ends the body.
Origin: block_load.
"""

import hashlib
from typing import Any

from construct import Bytes, If, Int64ub, RepeatUntil, Struct

from .combinators import Body, Counted, Whole, held
from .constants import (
    BLOCK_DEVICE,
    BLOCK_EOS,
    BLOCK_PROGRESS,
    BLOCK_SECTOR_BITS,
    BLOCK_SIZE,
    BLOCK_ZERO,
)

FLAGS = frozenset({BLOCK_DEVICE, BLOCK_DEVICE | BLOCK_ZERO, BLOCK_PROGRESS, BLOCK_EOS})


def _flags(word: int) -> int:
    return word & ((1 << BLOCK_SECTOR_BITS) - 1)


Word = Struct(
    "word" / held("block.flags", Int64ub, lambda word, _: _flags(word) in FLAGS),
    "device" / If(lambda this: _flags(this.word) & BLOCK_DEVICE, Counted),
    "data" / If(lambda this: _flags(this.word) == BLOCK_DEVICE, Bytes(BLOCK_SIZE)),
)

Words = Whole("block.truncated", RepeatUntil(lambda w, *_: _flags(w.word) == BLOCK_EOS, Word))


def _transcript(words: Any) -> dict[str, Any]:
    devices: dict[str, dict[str, Any]] = {}
    progress = []
    for word in words:
        sector = word.word >> BLOCK_SECTOR_BITS
        if word.device is not None:
            device = devices.setdefault(
                word.device, {"normal": 0, "zero": 0, "sha256": hashlib.sha256()}
            )
            device["zero" if word.data is None else "normal"] += 1
            device["sha256"].update(sector.to_bytes(8) + (word.data or b""))
        elif _flags(word.word) == BLOCK_PROGRESS:
            progress.append(sector)
    for device in devices.values():
        device["sha256"] = device["sha256"].hexdigest()
    return {"devices": devices, "progress": progress}


BLOCK = Body("block", Words, _transcript)
