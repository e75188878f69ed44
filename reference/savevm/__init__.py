"""Reference implementation of QEMU's savevm / migration stream."""

from importlib.util import find_spec
from typing import Final

__version__: Final = "0.1.0"


def build() -> str:
    """How the hot modules were built: ``"compiled"`` (mypyc) or ``"pure Python"``."""
    spec = find_spec("savevm.stream.ram")
    compiled = spec is not None and (spec.origin or "").endswith((".so", ".pyd"))
    return "compiled" if compiled else "pure Python"
