"""An adapter: the reference, which gets its input in pieces.

Their size in bytes is the argument; with 0 they are of all sizes, the same ones of the same stream.
"""

import sys
import zlib
from random import Random
from typing import Any, Final

import savevm
from savevm.stream.reader import Reader
from savevm.transcript import Memory, Transcriber, rebuild
from savevm.vmdesc import find_description
from savevm_conformance.adapters import ours

# Of the most that the largest one can be, a few pages, if they are of all sizes.
_LOG_LARGEST: Final = 14


def transcribe(data: bytes, size: int) -> dict[str, Any]:
    """The transcript of a stream that comes in pieces."""
    memory = Memory()
    # The description, which comes last, is looked for before, as it is where all is there.
    reader = Reader(description=find_description(data), sink=memory)
    transcriber = Transcriber(memory)
    random = Random(zlib.crc32(data))
    most = 1 << random.randint(0, _LOG_LARGEST)
    at = 0
    while at < len(data):
        end = at + (size or random.randint(1, most))
        transcriber.add(reader.feed(data[at:end]))
        at = end
    transcriber.add(reader.finish())
    return transcriber.result(reader)


if __name__ == "__main__":
    size = int(sys.argv[1])
    ours.run("reference", savevm.__version__, lambda data: transcribe(data, size), rebuild)
