"""The streams that fuzzing begins with: those of the conformance vectors."""

from dataclasses import dataclass
from functools import cache, cached_property

from savevm_conformance.cases import Case, load_cases
from savevm_conformance.locate import vectors_directory
from savevm_spec.fields import Field, fields

__all__ = ["Seed", "seeds"]

# Bytes; larger ones say nothing that smaller ones do not, and take long.
LARGEST = 1 << 16


@dataclass(frozen=True)
class Seed:
    """A stream, good or bad, and what of it the grammar reads."""

    name: str
    data: bytes

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """See `savevm_spec.fields.fields`."""
        return tuple(fields(self.data)[0])


@cache
def seeds(*, largest: int = LARGEST, machine: bool = False) -> tuple[Seed, ...]:
    """The streams of the vectors of at most ``largest`` bytes, by id.

    With ``machine`` only those that a machine loads, which QEMU can be, too.

    Raises:
        FileNotFoundError: there are no vectors (see `savevm_conformance.locate`).
    """

    def wanted(case: Case) -> bool:
        return case.verdict != "write" and (case.machine is not None or not machine)

    cases = filter(wanted, load_cases(vectors_directory()))
    return tuple(
        Seed(case.id, data) for case in cases if len(data := case.stream.read_bytes()) <= largest
    )
