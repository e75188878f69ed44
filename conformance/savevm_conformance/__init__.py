"""Conformance: vectors for the savevm stream, and the runner that holds readers against them."""

from typing import Final

__version__: Final = "0.1.0"
