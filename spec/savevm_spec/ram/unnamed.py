"""RAM without block names (versions 1 to 3): one block, of the same size wherever it is stated.

Origin: ram_load of 0.9 and 0.10.
"""

from typing import Any

from construct import Computed, Container, Int32ub, Struct

from ..combinators import held
from ..constants import RAM_MEM_SIZE, RAM_UNNAMED_BLOCK
from ..reading import reading
from .blocks import Total


def _all_ram(size: int, context: Any) -> bool:
    """Whether all RAM is of ``size`` bytes, which it is if nothing has stated another before."""
    return reading(context).ram.blocks.setdefault(RAM_UNNAMED_BLOCK, size) == size


def size_in(unit: int) -> Any:
    """The be32 size in bytes before RAM of version 1 or 2, in whole pages or blocks of ``unit``."""
    size = held("ram.size", Int32ub, lambda size, _: size % unit == 0)
    return held("ram.size.differs", size, _all_ram)


SizeWord = Struct(
    "word"
    / held("ram.size.differs", Total, lambda word, this: _all_ram(word - RAM_MEM_SIZE, this)),
    "blocks"
    / Computed(
        lambda this: [Container(idstr=RAM_UNNAMED_BLOCK, used_length=this.word - RAM_MEM_SIZE)]
    ),
)
"""The word size | MEM_SIZE of version 3."""


def transcript(size: int, zero: int, fill: int, normal: int) -> dict[str, Any]:
    """What a transcript tells of a whole RAM with so many pages of each kind."""
    pages = {"zero": zero, "fill": fill, "normal": normal}
    return {
        "blocks": [{"idstr": RAM_UNNAMED_BLOCK, "used_length": size}],
        "pages": {RAM_UNNAMED_BLOCK: pages} if any(pages.values()) else {},
        "hooks": 0,
        "multifd_flushes": 0,
    }
