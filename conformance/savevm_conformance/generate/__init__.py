"""The vectors' generator: from seeds and streams written by hand to files, bit for bit.

accepts.py  what a reader takes, from real QEMUs and by hand
rejects.py  the same streams with one declared fault each
loaders.py  what a reader takes and a machine refuses
either.py   where QEMU releases and the rules differ
found.py    what fuzzing has found
files.py    writing the files, and comparing them with what would be written
"""

from functools import cache

from savevm_conformance.generate.accepts import accepts
from savevm_conformance.generate.either import eithers
from savevm_conformance.generate.found import founds
from savevm_conformance.generate.loaders import loaders
from savevm_conformance.generate.model import Vector
from savevm_conformance.generate.rejects import rejects


@cache
def vectors() -> dict[str, Vector]:
    """Every vector by id, sorted.

    Raises:
        ValueError: two vectors have the same id.
    """
    found: dict[str, Vector] = {}
    for vector in (*accepts().values(), *loaders(), *rejects(), *eithers(), *founds()):
        if vector.id in found:
            raise ValueError(f"two vectors {vector.id}")
        found[vector.id] = vector
    return dict(sorted(found.items()))
