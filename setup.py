"""The mypyc switch: compile the hot modules where a C compiler works, else install pure Python.

SAVEVM_MYPYC=1 makes a failure to compile an error, SAVEVM_MYPYC=0 does not try.
"""

import os
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

HOT = [
    "reference/savevm/sink.py",
    "reference/savevm/extract.py",
    "reference/savevm/ram.py",
    "reference/savevm/stream/events.py",
    "reference/savevm/stream/handlers.py",
    "reference/savevm/stream/words.py",
    "reference/savevm/stream/ram.py",
    "reference/savevm/stream/ram_unnamed.py",
    "reference/savevm/stream/reader.py",
]
SWITCH = os.environ.get("SAVEVM_MYPYC", "")


def fall_back(reason: object) -> list:
    if SWITCH == "1":
        raise SystemExit(f"savevm: SAVEVM_MYPYC=1, but {reason}")
    print(f"savevm: pure Python build ({reason}); reading RAM will be slow", file=sys.stderr)
    return []


def check_compiler() -> None:
    from distutils.ccompiler import new_compiler
    from distutils.sysconfig import customize_compiler, get_python_inc

    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "probe.c")
        source.write_text("#include <Python.h>\nint main(void) { return 0; }\n")
        compiler.compile([str(source)], output_dir=directory, include_dirs=[get_python_inc()])


def extensions() -> list:
    if SWITCH == "0":
        return fall_back("SAVEVM_MYPYC=0")
    try:
        check_compiler()
    except Exception:
        return fall_back("no C compiler with Python headers works here")
    try:
        from mypyc.build import mypycify

        return mypycify(
            ["--config-file=pyproject.toml", *HOT],
            opt_level="3",
            debug_level="0",
            group_name="savevm.native",
        )
    except (Exception, SystemExit) as error:  # mypy exits on type errors
        reason = (str(error).splitlines() or [""])[0]
        return fall_back(f"{type(error).__name__}: {reason}")


class AllOrNothing(build_ext):
    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            self.extensions = fall_back(error)


setup(ext_modules=extensions(), cmdclass={"build_ext": AllOrNothing})
