#!/usr/bin/env python3
"""Builds the official RISC-V ISA tests and runs them on the reference machine, or on a QEMU.

SOURCE is a checkout of riscv-tests with its submodule ``env``; nothing is written there.  Exits
with 1 if a test failed, 2 if nothing could be run.
"""

import argparse
import fnmatch
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

# The suites of what the machine has, with the architecture to build them for.
SUITES: Final = {
    **dict.fromkeys(("ui", "um", "ua", "uf", "ud", "uc", "mi", "si"), "rv64g"),
    "uzba": "rv64g_zba",
    "uzbb": "rv64g_zbb",
    "uzbc": "rv64g_zbc",
    "uzbs": "rv64g_zbs",
    "uzicond": "rv64g_zicond",
    "mzicbo": "rv64g_zicboz",
}
VARIANTS: Final = ("p", "v")
# As the tests' own Makefile has them.
COMMON: Final = "-mabi=lp64d -static -mcmodel=medany -fvisibility=hidden -nostdlib -nostartfiles"
# Debian's bare-metal compiler has no C library: that of the v variants' kernel are these headers.
VIRTUAL: Final = "-std=gnu99 -O2 -ffreestanding"
HEADERS: Final = {
    "string.h": "#include <stddef.h>\n"
    "void *memcpy(void *, const void *, size_t);\n"
    "void *memset(void *, int, size_t);\n"
    "int memcmp(const void *, const void *, size_t);\n"
    "size_t strlen(const char *);\n"
    "int strcmp(const char *, const char *);\n"
    "char *strcpy(char *, const char *);\n",
    "stdio.h": "",
    "ctype.h": "",
}
RAM: Final = 16 << 20
INSTRUCTIONS: Final = 50_000_000
SECONDS: Final = 60

PASSED: Final = "passed"
FAILED: Final = "failed"
NOT_BUILT: Final = "not built"
NOT_RUN: Final = "not run"


class Test(NamedTuple):
    suite: str
    variant: str
    name: str

    def __str__(self) -> str:
        return f"rv64{self.suite}-{self.variant}-{self.name}"


@dataclass
class Outcome:
    test: Test
    result: str
    detail: str = ""
    seconds: float = 0.0


def find(source: Path) -> list[Test]:
    """The tests that the Makefrags of ``SUITES`` list, in their order."""
    tests = []
    for suite in SUITES:
        makefrag = source / "isa" / f"rv64{suite}" / "Makefrag"
        text = makefrag.read_text().replace("\\\n", " ")
        lists = {name: words.split() for name, words in re.findall(r"^(\w+)\s*=(.*)$", text, re.M)}
        for variant in VARIANTS:
            if f"rv64{suite}_{variant}_tests" in lists:
                tests += [Test(suite, variant, name) for name in lists[f"rv64{suite}_sc_tests"]]
    return tests


def others(source: Path) -> list[str]:
    """The suites for 64 bits that are not among ``SUITES``."""
    ours = {f"rv64{suite}" for suite in SUITES}
    folders = {path.parent.name for path in (source / "isa").glob("*/Makefrag")}
    return sorted(name for name in folders - ours if not name.startswith("rv32"))


def build(test: Test, source: Path, directory: Path, compiler: str) -> Path | Outcome:
    """The test's ELF, or why there is none."""
    environment = source / "env" / test.variant
    program = source / "isa" / f"rv64{test.suite}" / f"{test.name}.S"
    target = directory / str(test)
    command = [compiler, f"-march={SUITES[test.suite]}", *shlex.split(COMMON)]
    sources = [program]
    if test.variant == "v":
        # Which pages the test's kernel deals out first; reproducible, different for each test.
        entropy = hashlib.md5(str(test).encode()).hexdigest()[:7]
        command += [f"-DENTROPY=0x{entropy}", *shlex.split(VIRTUAL), f"-I{directory / 'include'}"]
        sources = [environment / "entry.S", *sorted(environment.glob("*.c")), program]
    command += [f"-I{environment}", f"-I{source / 'isa' / 'macros' / 'scalar'}"]
    command += [f"-T{environment / 'link.ld'}", *map(str, sources), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode == 0:
        return target
    lines = [line for line in done.stderr.splitlines() if "rror" in line] or [done.stderr]
    unknown = "ISA extension" in lines[0]
    return Outcome(test, NOT_RUN if unknown else NOT_BUILT, lines[0].rpartition("rror: ")[2])


def verdict(test: Test, code: int | None, said: str, seconds: float) -> Outcome:
    """Of the exit code that the test powered off with; None if it did not."""
    if code == 0:
        return Outcome(test, PASSED, seconds=seconds)
    reason = f"test {code}" if code is not None else "did not end"
    return Outcome(test, FAILED, f"{reason}; it said: {said}" if said else reason, seconds)


def run_on_reference(test: Test, elf: Path) -> Outcome:
    from savevm.machine.spike import Spike

    begun = time.monotonic()
    said = bytearray()
    machine = Spike(RAM, console=said.extend, deterministic=7)
    machine.load_image(bios=str(elf))
    machine.resume()
    executed = 0
    while machine.running and executed < INSTRUCTIONS:
        executed += machine.step(100_000)
    text = said.decode(errors="replace").strip()
    return verdict(test, machine.exit_code, text, time.monotonic() - begun)


def run_on_qemu(qemu: str, test: Test, elf: Path) -> Outcome:
    begun = time.monotonic()
    command = [qemu, "-M", "spike", "-m", "16M", "-nographic", "-bios", str(elf)]
    command += ["-monitor", "none", "-serial", "stdio", "-nic", "none"]
    code = None
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=10)
        code, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as e:
        said = e.stdout or b""
    text = said.decode(errors="replace").strip()
    return verdict(test, code, text, time.monotonic() - begun)


def run_all(
    built: Sequence[tuple[Test, Path]], run: Callable[[Test, Path], Outcome], jobs: int
) -> list[Outcome]:
    with ProcessPoolExecutor(jobs) as pool:
        futures = [(test, pool.submit(run, test, elf)) for test, elf in built]
        outcomes = []
        for test, future in futures:
            try:
                outcomes.append(future.result())
            except Exception as e:  # what the machine raises is a failure of it
                outcomes.append(Outcome(test, FAILED, f"{type(e).__name__}: {e}"))
    return outcomes


def report(outcomes: Sequence[Outcome], on: str) -> None:
    print(f"\nOn {on}:")
    results = (PASSED, FAILED, NOT_BUILT, NOT_RUN)
    print(f"{'':10}" + "".join(f"{result:>11}" for result in results))
    groups = dict.fromkeys((o.test.suite, o.test.variant) for o in outcomes)
    for suite, variant in groups:
        counts = Counter(o.result for o in outcomes if o.test[:2] == (suite, variant))
        print(f"{f'rv64{suite}-{variant}':10}" + "".join(f"{counts[r]:>11}" for r in results))
    counts = Counter(o.result for o in outcomes)
    print(f"{'all':10}" + "".join(f"{counts[r]:>11}" for r in results))
    others: dict[tuple[str, str], list[str]] = {}
    for o in outcomes:
        if o.result != PASSED:
            others.setdefault((o.result, o.detail), []).append(str(o.test))
    for (result, detail), tests in others.items():
        print(f"{result} ({detail}): {' '.join(tests)}")


def write_junit(outcomes: Sequence[Outcome], on: str, path: Path) -> None:
    suite = ET.Element("testsuite", name=f"RISC-V ISA tests on {on}", tests=str(len(outcomes)))
    for outcome in outcomes:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=f"rv64{outcome.test.suite}",
            name=str(outcome.test),
            time=f"{outcome.seconds:.3f}",
        )
        if outcome.result != PASSED:
            kind = "failure" if outcome.result == FAILED else "skipped"
            ET.SubElement(case, kind, message=f"{outcome.result}: {outcome.detail}")
    ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("source", type=Path, help="riscv-tests, with env/ checked out")
    parser.add_argument(
        "--only", metavar="PATTERN", help="tests to run, as rv64ui-p-add* or *fadd*"
    )
    parser.add_argument("--variants", default="p,v", help="p (bare) and v (under Sv39): p,v")
    parser.add_argument("--list", action="store_true", help="list the tests and end")
    parser.add_argument("--qemu", metavar="PATH", help="run on this qemu-system-riscv64 instead")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="also write a JUnit report")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the built ELFs there")
    parser.add_argument("--compiler", default="riscv64-unknown-elf-gcc")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    try:
        tests = find(options.source)
    except OSError as e:
        print(f"isa_tests: {e.filename}: {e.strerror}", file=sys.stderr)
        return 2
    tests = [t for t in tests if t.variant in options.variants.split(",")]
    if options.only:
        tests = [t for t in tests if fnmatch.fnmatch(str(t), options.only)]
    if options.list:
        print("\n".join(map(str, tests)))
        return 0
    if not tests or not shutil.which(options.compiler):
        missing = f"no {options.compiler}" if tests else "no such tests"
        print(f"isa_tests: {missing}", file=sys.stderr)
        return 2
    run: Callable[[Test, Path], Outcome] = run_on_reference
    on = "the reference"
    if options.qemu:
        run = partial(run_on_qemu, options.qemu)
        on = options.qemu
    else:
        import savevm

        on += f" ({savevm.build()})"
    with tempfile.TemporaryDirectory() as temporary:
        directory = (options.keep or Path(temporary)).absolute()
        (directory / "include").mkdir(parents=True, exist_ok=True)
        for name, text in HEADERS.items():
            (directory / "include" / name).write_text(text)
        with ThreadPoolExecutor(options.jobs) as pool:
            make = partial(
                build, source=options.source, directory=directory, compiler=options.compiler
            )
            products = list(zip(tests, pool.map(make, tests), strict=True))
        built = [(test, product) for test, product in products if isinstance(product, Path)]
        ran = {outcome.test: outcome for outcome in run_all(built, run, options.jobs)}
    outcomes = [p if isinstance(p, Outcome) else ran[test] for test, p in products]
    report(outcomes, on)
    if absent := others(options.source):
        print(f"not run, because the machine has nothing of it: {' '.join(absent)}")
    if options.junit:
        write_junit(outcomes, on, options.junit)
    if any(o.result in (FAILED, NOT_BUILT) for o in outcomes):
        return 1
    return 0 if any(o.result == PASSED for o in outcomes) else 2


if __name__ == "__main__":
    sys.exit(main())
