"""Reference implementation of QEMU's savevm / migration stream."""

from typing import Final

__version__: Final = "0.1.0"


def build() -> str:
    """How the hot modules were built: ``"compiled"`` (mypyc) or ``"pure Python"``."""
    from savevm.stream import ram

    return "pure Python" if (ram.__file__ or "").endswith(".py") else "compiled"
