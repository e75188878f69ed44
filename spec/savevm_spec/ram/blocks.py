"""The block list: a be64 word total | MEM_SIZE, then blocks until their lengths reach the total.

A block is a u8 length, its name and its be64 used length in bytes.  Origin: ram_load_precopy.
"""

from typing import Any

from construct import Int64ub, Rebuild, Struct, Tell

from ..combinators import Counted, Noted, While, held
from ..constants import LIMIT_RAM_BLOCKS, RAM_MEM_SIZE
from ..errors import GrammarError
from ..reading import reading


def _admit(block: Any) -> None:
    """Add the block to the memory and take its length from what remains of the total."""
    state = reading(block)
    blocks = state.ram.blocks
    if block.idstr not in blocks and len(blocks) >= LIMIT_RAM_BLOCKS:
        raise GrammarError("limit.ram-blocks", block.offset)
    if block.used_length > block._.remaining:
        raise GrammarError("ram.blocks.total", block.length_offset)
    if block.idstr in blocks:
        state.report("ram.block.duplicate", block.offset)
        if block.used_length != blocks[block.idstr]:
            raise GrammarError("ram.block.length", block.length_offset)
    blocks[block.idstr] = block.used_length
    block._.remaining -= block.used_length


Block = Struct(
    "offset" / Tell,
    "idstr" / Counted,
    "length_offset" / Tell,
    "used_length" / Int64ub,
    Noted(_admit),
)

Total = held("limit.ram-size", Int64ub, lambda word, _: word < 1 << 63)

BlockList = Struct(
    "word" / Rebuild(Total, lambda this: sum(b.used_length for b in this.blocks) | RAM_MEM_SIZE),
    "remaining" / Noted(lambda this: this.word - RAM_MEM_SIZE),
    "blocks" / While(lambda _, this: this.remaining > 0, Block),
)
