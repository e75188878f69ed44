"""The process that libFuzzer runs in: ``run.py LAUNCHER TARGET EVERY ARGUMENTS…``."""

import sys
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final
from zlib import crc32

import atheris

# Before all that is to be measured is imported.
with atheris.instrument_imports(include=["savevm"]):
    from savevm_fuzz.coverage.targets import TARGETS, Target

# Of so many mutants one is made by the target's own means, which take longer.
_OWN: Final = 8


def fuzz(launcher: str, target: Target, every: int, arguments: Sequence[str]) -> None:
    """Run libFuzzer, which ends the process."""

    def one(data: bytes) -> None:
        target.run(data)
        # By the input, so that it fails again.
        if target.compare is not None and every and crc32(data) % every == 0:
            target.compare(data)

    custom: dict[str, Any] = {}
    if target.mutate is not None:
        custom["custom_mutator"] = _mutator(target.mutate)
    atheris.Setup([launcher, *arguments], one, **custom)
    atheris.Fuzz()


def _mutator(mutate: Callable[[bytes, Random], bytes]) -> Callable[[bytes, int, int], bytes]:
    def mutated(data: bytes, largest: int, seed: int) -> bytes:
        random = Random(seed)
        if random.randrange(_OWN):
            return bytes(atheris.Mutate(data, largest))
        return mutate(data, random)[:largest]

    return mutated


if __name__ == "__main__":
    launcher, name, every, *arguments = sys.argv[1:]
    fuzz(launcher, TARGETS[name], int(every), arguments)
