"""The grammar, ``savevm_spec``."""

from functools import lru_cache
from typing import Any

from savevm_conformance import __version__
from savevm_conformance.adapters import ours
from savevm_spec import stream

# It takes its time, and the same stream is transcribed and rebuilt in turn.
parse = lru_cache(maxsize=1)(stream.parse)


def transcribe(data: bytes) -> dict[str, Any]:
    """As ``savevm.transcript.transcribe``."""
    return stream.transcript(parse(data))


def rebuild(data: bytes) -> bytes:
    """``data`` read and written again."""
    return stream.build(parse(data))


if __name__ == "__main__":
    ours.run("spec", __version__, transcribe, rebuild)
