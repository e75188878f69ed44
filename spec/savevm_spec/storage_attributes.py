"""The live section "s390-storage_attributes" (version 0): be64 words of address | flag.

The flag is one of the low 12 bits; behind MORE stand a be64 count and as many values of one byte.
The body ends with the word EOS.  Origin: cmma_load.
"""

from typing import Any

from construct import If, Int64ub, RepeatUntil, Struct, this

from .combinators import Body, Whole, held, limited_bytes
from .constants import (
    LIMIT_STORAGE_ATTRIBUTES,
    STORAGE_ATTRIBUTES_DONE,
    STORAGE_ATTRIBUTES_EOS,
    STORAGE_ATTRIBUTES_FLAG_MASK,
    STORAGE_ATTRIBUTES_MORE,
)

FLAG_NAMES = {
    STORAGE_ATTRIBUTES_EOS: "eos",
    STORAGE_ATTRIBUTES_MORE: "more",
    STORAGE_ATTRIBUTES_DONE: "done",
}

Word = Struct(
    "word"
    / held(
        "storage-attributes.flags",
        Int64ub,
        lambda word, _: word & STORAGE_ATTRIBUTES_FLAG_MASK in FLAG_NAMES,
    ),
    "data"
    / If(
        this.word & STORAGE_ATTRIBUTES_FLAG_MASK == STORAGE_ATTRIBUTES_MORE,
        limited_bytes(
            held(
                "limit.storage-attributes",
                Int64ub,
                lambda count, _: count <= LIMIT_STORAGE_ATTRIBUTES,
            )
        ),
    ),
)

StorageAttributes = Whole(
    "storage-attributes.truncated",
    RepeatUntil(
        lambda w, *_: w.word & STORAGE_ATTRIBUTES_FLAG_MASK == STORAGE_ATTRIBUTES_EOS, Word
    ),
)


def _transcript(words: Any) -> dict[str, Any]:
    return {
        "words": [
            {
                "flag": FLAG_NAMES[w.word & STORAGE_ATTRIBUTES_FLAG_MASK],
                "address": w.word & ~STORAGE_ATTRIBUTES_FLAG_MASK,
            }
            | ({} if w.data is None else {"data": w.data.hex()})
            for w in words
        ]
    }


STORAGE_ATTRIBUTES = Body("storage-attributes", StorageAttributes, _transcript)
