"""Where the vectors are: beside the package in a source tree, inside it when installed."""

import os
from pathlib import Path
from typing import Final

VARIABLE: Final = "SAVEVM_VECTORS"


def vectors_directory() -> Path:
    """The directory ``vectors`` (with ``<area>/<verdict>/<slug>/`` and ``seeds/`` in it).

    The environment variable SAVEVM_VECTORS goes before everything else.

    Raises:
        FileNotFoundError: there is none.
    """
    package = Path(__file__).resolve().parent
    named = os.environ.get(VARIABLE)
    places = [Path(named)] if named else [package.parent / "vectors", package / "vectors"]
    for place in places:
        if place.is_dir():
            return place
    tried = ", ".join(str(place) for place in places)
    raise FileNotFoundError(f"no conformance vectors; looked at {tried} (set {VARIABLE})")
