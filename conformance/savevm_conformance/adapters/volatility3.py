"""volatility3, which looks for the memory of a guest in a stream.

``python -m savevm_conformance.adapters.volatility3 [PYTHON]``, where PYTHON is an interpreter that
has volatility3; without it this one has.  A stream is accepted over which its layer can be stacked
and all memory that this maps be read.
"""

import importlib.metadata
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import savevm_conformance
from savevm_conformance.protocol.serve import serve

__all__ = ["reader"]

_FEATURES: Final = (
    "configuration",
    "commands",
    "footers",
    "ram-4",
    "page-size",
    "htab",
    "vmdesc",
    "vmstate",
    "opaque",
)
_DETAIL: Final = 300
# It looks for the description from the end on in steps of this, of which the first finds nothing.
_STEP: Final = 4096
# That interpreter's own packages come before those that stand beside this one.
_START: Final = """
import runpy, sys
sys.path.append(sys.argv.pop())
runpy.run_module("savevm_conformance.adapters.volatility3", run_name="__main__")
"""


def reader(case: dict[str, Any]) -> dict[str, Any]:
    """What volatility3 makes of a stream."""
    stream = Path(case["stream"])
    if stream.stat().st_size <= _STEP:
        return {"outcome": "skip", "why": f"it opens no stream of {_STEP} bytes or less"}
    # By name: it is no dependency of the suite.
    names = ("contexts", "layers.physical", "layers.qemu")
    contexts, physical, qemu = (import_module(f"volatility3.framework.{name}") for name in names)
    context = contexts.Context()
    context.config["file.location"] = stream.as_uri()
    context.add_layer(physical.FileLayer(context, "file", "file"))
    try:
        layer = qemu.QemuStacker.stack(context, "file")
        if layer is None:
            return {"outcome": "reject", "detail": "no QEMU suspend layer"}
        context.add_layer(layer)
        for address, length, *_ in layer.mapping(0, 1 << 64, ignore_errors=True):
            layer.read(address, length)
    except MemoryError:
        raise
    except Exception as error:
        # Some of what it raises is no LayerException; whoever opens the stream gets that, too.
        return {"outcome": "reject", "detail": f"{type(error).__name__}: {error}"[:_DETAIL]}
    finally:
        context.layers["file"].destroy()
    return {"outcome": "accept"}


def main() -> None:
    """Speak the protocol, in the interpreter that was named."""
    if len(sys.argv) > 1:
        root = str(Path(savevm_conformance.__file__).parents[1])
        try:
            os.execvp(sys.argv[1], [sys.argv[1], "-P", "-c", _START, root])
        except OSError as error:
            sys.exit(f"{sys.argv[1]}: {error.strerror}")
    try:
        version = importlib.metadata.version("volatility3")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"volatility3: not installed for {sys.executable}")
    serve(
        "volatility3",
        version,
        {"reader": reader},
        features=_FEATURES,
        url="https://github.com/volatilityfoundation/volatility3",
    )


if __name__ == "__main__":
    main()
