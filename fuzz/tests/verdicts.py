"""What grammar and reference make of a stream, and whether it is the same."""

from functools import lru_cache
from typing import Any

from savevm.channel import Channel
from savevm.savevm import LoadError, Machine, Registry, load
from savevm.transcript import rebuild, transcribe
from savevm_conformance.adapters import ours
from savevm_conformance.protocol import SAYS
from savevm_fuzz.oracle import disagreement, predict
from savevm_fuzz.seeds import Seed, seeds


def read(data: bytes) -> dict[str, Any]:
    """The reference's verdict."""
    return ours.verdict(transcribe(data), data, rebuild)


def agreed(data: bytes) -> dict[str, Any]:
    """The verdict of both."""
    predicted, got = predict(data), read(data)
    # The judge compares no findings of what is rejected, and a program has no such reason.
    assert predicted["findings"] == got["findings"]
    found = disagreement(predicted, got, SAYS)
    assert found is None, (found, data.hex() if len(data) < 4096 else len(data))
    return predicted


@lru_cache(maxsize=1)
def good() -> tuple[tuple[Seed, dict[str, Any]], ...]:
    """The streams of the vectors that are accepted, and their verdicts."""
    verdicts = ((seed, predict(seed.data)) for seed in seeds())
    return tuple((seed, told) for seed, told in verdicts if told["outcome"] == "accept")


def load_error(
    registry: Registry, channel: Channel, machine: Machine | None = None
) -> LoadError | None:
    """Load a stream; why that failed."""
    try:
        load(registry, channel, machine)
    except LoadError as error:
        return error
    return None
