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
    "reference/savevm/machine/memory.py",
    "reference/savevm/machine/bitmanip.py",
    "reference/savevm/machine/decode.py",
    "reference/savevm/machine/code.py",
    "reference/savevm/machine/fpu.py",
    "reference/savevm/machine/csr.py",
    "reference/savevm/machine/mmu.py",
    "reference/savevm/machine/execute.py",
    "reference/savevm/machine/cpu.py",
    "reference/savevm/stream/events.py",
    "reference/savevm/stream/handlers.py",
    "reference/savevm/stream/words.py",
    "reference/savevm/stream/ram.py",
    "reference/savevm/stream/ram_unnamed.py",
    "reference/savevm/stream/reader.py",
]
SWITCH = os.environ.get("SAVEVM_MYPYC", "")
FLAGS = [
    # 64 bits wrap, whatever CFLAGS in the environment has replaced.
    "-fwrapv",
    # Else no function that the library exports is inlined, and mypyc exports all.
    "-fno-semantic-interposition",
]


def fall_back(reason: object) -> list:
    if SWITCH == "1":
        raise SystemExit(f"savevm: SAVEVM_MYPYC=1, but {reason}")
    print(f"savevm: pure Python build ({reason}); reading RAM will be slow", file=sys.stderr)
    return []


def check_compiler(*flags: str) -> None:
    from distutils.ccompiler import new_compiler
    from distutils.sysconfig import customize_compiler, get_python_inc

    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "probe.c")
        source.write_text("#include <Python.h>\nint main(void) { return 0; }\n")
        compiler.compile(
            [str(source)],
            output_dir=directory,
            include_dirs=[get_python_inc()],
            extra_postargs=list(flags),
        )


def accepted(flag: str) -> bool:
    try:
        check_compiler("-Werror", flag)
    except Exception:
        return False
    return True


def extensions() -> list:
    if SWITCH == "0":
        return fall_back("SAVEVM_MYPYC=0")
    try:
        check_compiler()
    except Exception:
        return fall_back("no C compiler with Python headers works here")
    try:
        from mypyc.build import mypycify

        modules = mypycify(
            ["--config-file=pyproject.toml", *HOT],
            opt_level="3",
            debug_level="0",
            group_name="savevm.native",
        )
        flags = [flag for flag in FLAGS if accepted(flag)]
        for module in modules:
            module.extra_compile_args = [*module.extra_compile_args, *flags]
        return modules
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
