"""Feed a target with inputs, and keep those that reach something new.

Behind -- come options of libFuzzer, such as -max_total_time=SECONDS.  New inputs are written to the
first directory, if there is one; the inputs that the source keeps are read besides.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from savevm import build
from savevm_fuzz.coverage.inputs import CORPUS, archive, kept, name_of, pack, seeds
from savevm_fuzz.coverage.targets import TARGETS

# Seconds for an input, and MiB.
_LIMITS: Final = ("-timeout=20", "-rss_limit_mb=2048")
_COMPILED: Final = (
    "the modules of savevm are compiled, so that nothing of them can be measured: install with "
    "SAVEVM_MYPYC=0, or have the source in PYTHONPATH"
)


def main(argv: Sequence[str]) -> int:
    """Run the command: libFuzzer's exit code, or 2 if nothing can be measured."""
    split = argv.index("--") if "--" in argv else len(argv)
    given = _parser().parse_args(argv[:split])
    largest = TARGETS[given.target].largest
    if given.seeds is not None:
        _write(given.seeds, seeds(given.target, largest))
        return 0
    if (why := _missing(packing=given.pack)) is not None:
        print(f"savevm_fuzz.coverage: {why}", file=sys.stderr)
        return 2
    with TemporaryDirectory() as directory:
        launcher = _launcher(Path(directory), given.target, 0 if given.pack else given.every)
        known, new = Path(directory, "known"), Path(directory, "new")
        new.mkdir()
        _write(known, kept(given.target).values())
        options = [f"-max_len={largest}", *_LIMITS, *argv[split + 1 :]]
        if given.pack:
            options += ["-merge=1", "-use_counters=0"]
            corpus = [new, known, *given.corpus]
        else:
            corpus = given.corpus or [new]
            # Files are only run.
            if not all(path.is_file() for path in corpus):
                corpus[0].mkdir(parents=True, exist_ok=True)
                corpus = [*corpus, known]
        code = subprocess.run([launcher, *options, *map(str, corpus)]).returncode
        if given.pack and code == 0:
            pack(given.target, [path.read_bytes() for path in new.iterdir()])
            size = archive(given.target).stat().st_size
            print(f"{given.target}: {len(kept(given.target))} inputs, {size} bytes")
        return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m savevm_fuzz.coverage", description=__doc__)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("corpus", nargs="*", type=Path, help="directories, or files to run once")
    parser.add_argument("--seeds", metavar="DIR", type=Path, help="write the seeds there, and end")
    parser.add_argument(
        "--pack", action="store_true", help="keep in the source the few inputs that reach it all"
    )
    parser.add_argument(
        "--every", metavar="N", type=int, default=16, help="ask the grammar of one in N inputs (16)"
    )
    return parser


def _missing(*, packing: bool) -> str | None:
    """Why nothing can be run."""
    if build() != "pure Python":
        return _COMPILED
    if packing and not CORPUS.is_dir():
        return f"inputs are kept in the source, and there is no {CORPUS}"
    return None if find_spec("atheris") else "needs the package atheris"


def _write(directory: Path, inputs: Iterable[bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (directory / name_of(data)).write_bytes(data)


def _launcher(directory: Path, target: str, every: int) -> str:
    """A program that runs libFuzzer on a target: libFuzzer starts others like itself."""
    path = directory / "launcher"
    words = (sys.executable, "-m", "savevm_fuzz.coverage.run", str(path), target, str(every))
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o700)
    return str(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
