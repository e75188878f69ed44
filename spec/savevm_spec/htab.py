"""The live section "spapr/htab" (version 1): the hash page table of a POWER guest.

be32 header; a header other than 0 (the size, as a power of two, or ffffffff for none) is the whole
body.  Behind a header of 0 come chunks: be32 index, be16 number of valid and be16 of invalid
entries, and the valid entries, 16 bytes each; a chunk of 8 zero bytes ends the body.
Origin: htab_load.
"""

from typing import Any

from construct import Bytes, If, Int16ub, Int32ub, RepeatUntil, Struct, this

from .combinators import Body, Whole
from .constants import HTAB_ENTRY_SIZE

Chunk = Struct(
    "index" / Int32ub,
    "valid" / Int16ub,
    "invalid" / Int16ub,
    "entries" / Bytes(this.valid * HTAB_ENTRY_SIZE),
)

Htab = Whole(
    "htab.truncated",
    Struct(
        "header" / Int32ub,
        "chunks"
        / If(
            this.header == 0,
            RepeatUntil(lambda c, *_: not (c.index or c.valid or c.invalid), Chunk),
        ),
    ),
)


def _transcript(htab: Any) -> dict[str, Any]:
    chunks = (htab.chunks or [])[:-1]
    return {
        "header": htab.header,
        "chunks": [[c.index, c.valid, c.invalid, c.entries.hex()] for c in chunks],
    }


HTAB = Body("htab", Htab, _transcript)
