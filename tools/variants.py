"""Deliberately wrong variants of the reference's reader and writer.

Each has one small change, that an operator makes mechanically.  Which are made depends on the seed and
on the sources alone.
"""

import ast
import difflib
import hashlib
import os
import re
import shutil
import tempfile
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

from savevm_spec import constants

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "reference" / "savevm"
# Where reading and writing are, with the areas of vectors that are about it.
SOURCES: Final = {
    "stream/reader.py": (),
    "stream/ram.py": ("ram",),
    "stream/ram_unnamed.py": ("legacy", "ram"),
    "stream/words.py": ("ram",),
    "stream/writer.py": (),
    "vmdesc.py": ("vmdesc",),
    "vmstate.py": ("vmstate", "vmdesc"),
    "ram.py": ("write",),
    "savable.py": ("write",),
    "savevm.py": ("write",),
}


class Excluded(NamedTuple):
    """What is not changed: patterns of the file, the function, the line (a regex), the operator."""

    file: str
    function: str
    line: str
    why: str
    operator: str = "*"

    def covers(self, mutant: "Mutant", text: str) -> bool:
        """Whether it is about a change in that line."""
        return (
            fnmatchcase(mutant.file, self.file)
            and fnmatchcase(mutant.function, self.function)
            and (self.operator == "*" or mutant.operator in self.operator.split())
            and re.search(self.line, text) is not None
        )


_LOADING: Final = "loading into a machine, which is not a role of this adapter"
_RUNNING: Final = "a machine that runs meanwhile; there is none"
_FAILING: Final = "a channel that fails; it is a file"
_PACE: Final = "how much a step sends, or looks at; all is sent and looked at in the end"
_SPEED: Final = "a shortcut; where it is not taken, the long way comes to the same"
_AGAIN: Final = "set or said again before anybody looks at it"
_CALLER: Final = "a mistake of the caller, not of the input"
_LARGE: Final = "it takes more bytes than a vector has"
_KNOWN: Final = "the layouts that come with the package are well formed"
_UNSEEN: Final = "for people, or for other callers; an adapter does not tell it"
EXCLUDED: Final = (
    # Loading
    Excluded("*", "*", r"handler|\bgiven\b|minimum_version_id|_(described|live)_record$", _LOADING),
    Excluded("stream/reader.py", "*._read_live*", "", _LOADING),
    Excluded("stream/reader.py", "*._read_described_record", "", _LOADING),
    Excluded("ram.py", "RamLoader*", "", _LOADING),
    Excluded("ram.py", "RamBlock.clear", "", _LOADING),
    Excluded("savable.py", "Ram.check", "", _LOADING),
    Excluded("savable.py", "*.load*", "", _LOADING),
    Excluded("savable.py", "Registry.has", "", _LOADING),
    *(
        Excluded("savevm.py", name, "", _LOADING)
        for name in ("_Checks*", "Load*", "load*", "_finish", "_stopped", "_check_v*")
    ),
    # Live migration
    *(
        Excluded("savevm.py", name, "", _RUNNING)
        for name in ("*async*", "ready", "descriptor", "*.release", "*.progress", "*.iterate")
    ),
    Excluded("sav*.py", "*.cancel", "", _RUNNING),
    Excluded("ram.py", "RamBlock.follow", "", _RUNNING),
    Excluded("ram.py", "RamBlock.clean", "", _RUNNING),
    Excluded("ram.py", "_marked", "", _RUNNING),
    Excluded("*", "*", r"_machine\b|_resume\b|\blive\b = |\brate|\bdirty\b|\.phase\b", _RUNNING),
    Excluded(
        "*",
        "*",
        r"\bclean\(|follow\(|frozen\b|notify\(|self\.stop\(|\.flush\(|form, (False|live)\)|\.rounds?\b|_written\b|deadline|_next\b",
        _RUNNING,
    ),
    Excluded("*", "*", r"\.error\b|\.check\(|\.cancel\(|_checked\(|\.seekable", _FAILING),
    # Pace and speed
    Excluded("*", "*.left", "", _PACE),
    Excluded("savevm.py", "_left_to_do", "", _PACE),
    Excluded("ram.py", "RamSaver._send", r"return|\.over\b|behind", _PACE),
    Excluded("ram.py", "RamSaver.complete", "", _PACE),
    Excluded("ram.py", "RamSaver.iterate", "", _PACE),
    Excluded("ram.py", "_put_chunks", "while", _PACE, "comparison"),
    Excluded("*", "*", r"\b_(OVERLAP|GATHER|BATCH|RUNS|PATIENCE|TURN|PAUSE)\b", _PACE),
    Excluded("stream/*", "*", r"RUN_(PAGES|ZEROS)\b", _PACE),
    Excluded("stream/*", "*", r"_run_address [+-]", _PACE, "arithmetic"),
    Excluded("stream/reader.py", "*", r"return True", _PACE, "boolean"),
    Excluded("stream/reader.py", "*", r"self\._need\b", _PACE),
    Excluded("stream/reader.py", "*.feed", r"_run\(|_buffered", _PACE),
    Excluded("stream/reader.py", "*._wait_within", "", _PACE),
    Excluded("stream/reader.py", "*._have_in_record", "", _PACE),
    Excluded("vmstate.py", "*.follows", "len", _PACE, "comparison constant"),
    Excluded("ram.py", "_put_chunks", "RAM_CHUNK_MAX", _PACE, "flag"),
    Excluded("vmdesc.py", "find_description", "last|window", _PACE),
    Excluded("*", "*", r"\bself\.need = |e\.need -|\.need\), |_have_in_record", _PACE),
    Excluded("*", "*", r"\bpatience\b", _SPEED),
    Excluded("stream/words.py", "*.__init__", r"1024", _SPEED, "comparison"),
    Excluded(
        "stream/ram.py",
        "*._zeros_ahead",
        r"data\[pos( \+ \d)?\] !=|word: i64|PageWords",
        _SPEED,
        "equality mask constant arithmetic flag",
    ),
    Excluded("ram.py", "RamBlock.is_zero", r"find|_words\[", "a page of zeros may be sent whole"),
    Excluded("ram.py", "RamSaver._run", r"_named = ", "a page may name its block again"),
    Excluded("ram.py", "RamBlock.wrote", "first = ", _SPEED, "arithmetic"),
    Excluded("ram.py", "*", r"found >= 0", _SPEED, "constant comparison"),
    Excluded("vmstate.py", "*", r"self\.pos \+ size \* .*> self\.end", _SPEED),
    Excluded("stream/reader.py", "*._defer", r"_in_record", _SPEED),
    Excluded("stream/reader.py", "*._search", "_searched", _SPEED),
    Excluded("stream/reader.py", "*._skip", "_pos", _SPEED),
    Excluded("stream/reader.py", "*._run", r"\bbefore\b|= last$", _SPEED),
    Excluded("stream/ram.py", "*._zeros_ahead", "while", _SPEED, "comparison"),
    Excluded("stream/ram.py", "*._zeros_ahead", r"\(size - pos\) //|pos \+= 9|count - 1", _SPEED),
    Excluded("stream/reader.py", "*._read_attributes", r"_have\(16,", _SPEED, "truncation"),
    Excluded("stream/ram_unnamed.py", "*._read_words", "_page_left", _SPEED, "truncation"),
    Excluded("stream/reader.py", "*", r"_have\((8|16) \+", "more bytes follow anyway", "constant"),
    Excluded("stream/ram.py", "*", r"size - pos < need", "more bytes follow anyway", "comparison"),
    Excluded("stream/reader.py", "*._read_htab_chunk", r"_have\(8,", _SPEED, "truncation"),
    Excluded("stream/reader.py", "*._read_configuration", r"_have\(5,", _SPEED, "truncation"),
    Excluded("stream/reader.py", "*._read_after_eof", r"_have\(5,", _SPEED, "truncation"),
    # What nobody sees
    Excluded("stream/*", "*.__init__", r"self\.\w+(: \w+)? = ", _AGAIN, "constant boolean flag"),
    Excluded("ram.py", "RamSaver.__init__", r"self\.\w+ = ", _AGAIN, "boolean"),
    Excluded("savable.py", "Ram.__init__", r"self\._version = ", _AGAIN),
    Excluded("stream/reader.py", "*._run", r'_data = b""', _AGAIN),
    Excluded("stream/reader.py", "*.finish", "_final", _AGAIN, "logic"),
    Excluded("stream/reader.py", "*._run", "_ended", _AGAIN),
    Excluded("stream/reader.py", "*", r"Device\(self", _AGAIN, "arithmetic constant"),
    Excluded("stream/ram_unnamed.py", "*._announce", "", _AGAIN),
    Excluded("*", "*", "sink is not None", "there is a sink", "logic branch"),
    Excluded("*", "*", "sink is not None and", "a piece of no bytes", "comparison constant"),
    Excluded("vmstate.py", "*.described", r"plain[\[(]", _UNSEEN),
    Excluded("savable.py", "Ram.__init__", "page_size", _CALLER),
    Excluded("savevm.py", "*", r"_event\(\w+\(0", _UNSEEN, "constant"),
    Excluded("savevm.py", "*", r"self\.whole\b", _UNSEEN),
    Excluded("stream/reader.py", "*.page_size", "VERSION_3", "versions 1 and 2 state no page size"),
    Excluded("stream/reader.py", "*.dialect", "ram_version or", "without RAM it makes none"),
    Excluded("stream/ram.py", "*._first_page_size", "flags &", "CONTINUE is refused next"),
    Excluded(
        "stream/reader.py", "*", r"_end >= 0|0 <= self\._end", "-1, or above 15", "comparison"
    ),
    Excluded("ram.py", "save_version_2", "compressobj", "how well it is compressed"),
    Excluded("stream/reader.py", "*", r"disk_zero|sector = |at = BLOCK_SIZE", _UNSEEN),
    Excluded("stream/reader.py", "*", r"BLOCK_DEVICE \| BLOCK_ZERO and self\._sink", _UNSEEN),
    Excluded("stream/reader.py", "*", r"_COMPRESSED|packed|hint|0x[0-9A-F]{6}: ", _UNSEEN),
    Excluded("ram.py", "*", r"self\.(normal|zero) \+=", _UNSEEN),
    Excluded("ram.py", "", "_MAPPING", _UNSEEN),
    Excluded("vmstate.py", "*by_name", "", _UNSEEN),
    Excluded("vmstate.py", "_plain", "", _UNSEEN, "logic constant branch"),
    Excluded("vmstate.py", "*.struct", r"self\.pos - at", _UNSEEN),
    # Nothing to see
    Excluded("ram.py", "RamBlock.write", r"if address", _CALLER),
    Excluded("savable.py", "Live.*", "", "RAM, the only live section here, has its own"),
    Excluded("savable.py", "Registry.register", "instance|_by_key:", _CALLER),
    Excluded("ram.py", "RamBlock.__init__", "no block of", _UNSEEN),
    Excluded("ram.py", "RamBlock.allocate", r"max\(", "a state has no block of no bytes"),
    Excluded("ram.py", "RamBlock.allocate", "madvise", _UNSEEN),
    Excluded("vmstate.py", "*", r"strict=", _CALLER, "boolean"),
    Excluded("vmstate.py", "_SchemaDecoder.number", r"isinstance|raise", _KNOWN),
    Excluded("vmstate.py", "decode_schema", r"vmdesc\.layout", _KNOWN),
    Excluded("vmstate.py", "*.described", "_INLINE|_LISTS", _KNOWN),
    Excluded("vmstate.py", "", '"&": lambda', _KNOWN),
    Excluded("vmdesc.py", "dumps", "", "the descriptions that are written have no key twice"),
    Excluded("*", "*", r"LIMIT_SCHEMA_BODY|VERSION_2_BODY_MAX|_undescribed_limit", _LARGE),
    Excluded("stream/reader.py", "*", r"waiting|_wait\(", _LARGE),
    Excluded("vmstate.py", "_Decoder.enter", "", _LARGE),
    Excluded(
        "vmstate.py", "*", r"self\.enter\(|\bfields\b, complete|LIMIT_VMSTATE", _LARGE, "call"
    ),
    Excluded("stream/ram.py", "*", "LIMIT_RAM_BLOCKS", _LARGE),
    Excluded("vmdesc.py", "Description.*", "LIMIT_VMDESC_VALUES", _LARGE),
)
# What is asked for at a time: asked for less, it is asked again.
_WANTS: Final = ("_short", "_NeedMore", "EndOfData", "_wait_within")

# Operators


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: bytes ``start`` to ``end`` of ``file`` become ``text``."""

    file: str
    line: int
    function: str
    operator: str
    start: int
    end: int
    text: str

    def apply(self, source: bytes) -> bytes:
        """The source with the change."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """What it changes, as a unified diff without context."""
        before, after = (text.decode().splitlines() for text in (source, self.apply(source)))
        name = f"savevm/{self.file}"
        return "\n".join(difflib.unified_diff(before, after, name, name, lineterm="", n=0))


COMPARISONS: Final[dict[type[ast.cmpop], tuple[str, str, str]]] = {
    ast.Lt: ("comparison", "<", "<="),
    ast.LtE: ("comparison", "<=", "<"),
    ast.Gt: ("comparison", ">", ">="),
    ast.GtE: ("comparison", ">=", ">"),
    ast.Eq: ("equality", "==", "!="),
    ast.NotEq: ("equality", "!=", "=="),
    ast.In: ("equality", "in", "not in"),
    ast.NotIn: ("equality", "not in", "in"),
    ast.Is: ("equality", "is", "is not"),
    ast.IsNot: ("equality", "is not", "is"),
}
ARITHMETIC: Final[dict[type[ast.operator], tuple[str, str, str]]] = {
    ast.Add: ("arithmetic", "+", "-"),
    ast.Sub: ("arithmetic", "-", "+"),
    ast.Mult: ("arithmetic", "*", "+"),
    ast.FloorDiv: ("arithmetic", "//", "%"),
    ast.Mod: ("arithmetic", "%", "//"),
    ast.LShift: ("mask", "<<", ">>"),
    ast.RShift: ("mask", ">>", "<<"),
    ast.BitAnd: ("mask", "&", "|"),
    ast.BitOr: ("mask", "|", "&"),
}
# Statements that ask whether there are bytes enough.
TRUNCATION: Final = ("_have", "_have_in_record", "_within")
JOINED: Final = r"pack\(|bytes\(|encode\(|_counted\(|\bb?'|\.data|\[\]|\[:|:\]|payload|\bpage\b"
POSITIONS: Final = ("pos", "_pos", "at", "after", "end", "address", "_base", "start")


def _called(node: ast.expr | None) -> str:
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).rpartition(".")[2]
    return ""


def _joins(node: ast.BinOp) -> bool:
    """Whether it joins bytes or text, or repeats them: changed, it would only raise a TypeError."""
    return any(re.search(JOINED, ast.unparse(side)) for side in (node.left, node.right))


def _siblings(tree: ast.Module) -> dict[str, str]:
    """For a number of the format the next one of the same kind that the module knows."""
    imported = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "savevm_spec.constants"
        for alias in node.names
        if type(getattr(constants, alias.name)) is int
    ]
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in sorted(imported):
        if not name.startswith("LIMIT_"):
            kinds[name.partition("_")[0]].append(name)
    return {
        name: kind[(i + 1) % len(kind)]
        for kind in kinds.values()
        for i, name in enumerate(kind)
        if len(kind) > 1
    }


class _Finder:
    """Finds what the operators can change in one source."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file = file
        self.source = source
        self.lines = source.split(b"\n")
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.found: list[Mutant] = []
        self.where: list[str] = []
        tree = ast.parse(source)
        self.siblings = _siblings(tree)
        self.body(tree.body)

    def span(self, node: ast.stmt | ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def add(self, operator: str, start: int, end: int, text: str) -> None:
        line = bisect(self.starts, start)
        mutant = Mutant(self.file, line, ".".join(self.where), operator, start, end, text)
        shown = self.lines[line - 1].decode()
        if not any(rule.covers(mutant, shown) for rule in EXCLUDED):
            self.found.append(mutant)

    def replaced(self, operator: str, node: ast.stmt | ast.expr, text: str) -> None:
        self.add(operator, *self.span(node), text)

    def sign(self, left: ast.expr, right: ast.expr, change: tuple[str, str, str]) -> None:
        """Change the sign between two operands."""
        operator, sign, other = change
        start, end = self.span(left)[1], self.span(right)[0]
        pattern = rf"\b{sign}\b" if sign.isalpha() else re.escape(sign).replace(r"\ ", r"\s+")
        between = re.sub(rb"#[^\n]*", lambda m: b" " * len(m[0]), self.source[start:end])
        if match := re.search(pattern.encode(), between):
            self.add(operator, start + match.start(), start + match.end(), other)

    def body(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self.where.append(node.name)
                self.body(node.body)
                self.where.pop()
                return
            case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Global():
                return
            case ast.Expr(ast.Constant()):
                return
            case ast.Expr(ast.Call() as call) if not (name := _called(call)).startswith("__"):
                self.replaced("truncation" if name in TRUNCATION else "call", node, "pass")
            case ast.Assign([ast.Name("__all__")]):
                return
            case ast.AnnAssign():
                if node.value is not None:
                    self.expression(node.value)
                return
            case ast.AugAssign():
                self.replaced("position", node, "pass")
            case ast.Assign([ast.Attribute(attr=name)]) if self.where[-1] != "__init__":
                self.replaced("position" if name in POSITIONS else "update", node, "pass")
            case ast.Assign([ast.Name(name)]) if self.where and name in POSITIONS:
                self.replaced("position", node, "pass")
            case ast.If():
                self.condition(node)
        for child in ast.iter_child_nodes(node):
            self.child(child)

    def condition(self, node: ast.If) -> None:
        last = node.body[-1]
        test = ast.unparse(node.test)
        if ":=" in test:
            return
        if isinstance(last, ast.Raise) and not node.orelse:
            raised = _called(last.exc)
            self.replaced("truncation" if raised == "EndOfData" else "check", node, "pass")
        elif isinstance(last, ast.Return) and _called(last.value) == "_short":
            self.replaced("truncation", node, "pass")
        else:
            self.replaced("branch", node.test, f"not ({test})")

    def child(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self.statement(node)
        elif isinstance(node, ast.expr):
            self.expression(node)
        elif isinstance(node, ast.match_case):
            if node.guard is not None:
                self.expression(node.guard)
            self.body(node.body)
        elif isinstance(node, (ast.excepthandler, ast.comprehension, ast.keyword, ast.withitem)):
            for child in ast.iter_child_nodes(node):
                self.child(child)

    def expression(self, node: ast.expr) -> None:
        match node:
            case ast.JoinedStr():
                return
            case ast.Call() if _called(node) in _WANTS:
                return
            case ast.Compare():
                operands = [node.left, *node.comparators]
                for left, sign, right in zip(operands, node.ops, operands[1:], strict=False):
                    self.sign(left, right, COMPARISONS[type(sign)])
            case ast.BoolOp():
                change = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                for left, right in zip(node.values, node.values[1:], strict=False):
                    self.sign(left, right, ("logic", *change))
            case ast.UnaryOp(ast.Not()):
                self.replaced("logic", node, ast.unparse(node.operand))
            case ast.UnaryOp(ast.Invert()):
                self.replaced("mask", node, ast.unparse(node.operand))
            case ast.UnaryOp(ast.USub(), ast.Constant()):
                return
            case ast.BinOp() if type(node.op) in ARITHMETIC and not _joins(node):
                self.sign(node.left, node.right, ARITHMETIC[type(node.op)])
            case ast.IfExp():
                self.replaced("branch", node.test, f"not ({ast.unparse(node.test)})")
            case ast.Constant(bool(value)):
                self.replaced("boolean", node, str(not value))
            case ast.Constant(int(value)):
                step = -1 if value % 2 else 1
                text = hex(value + step) if value > 255 else str(value + step)
                self.replaced("constant", node, text)
            case ast.Constant("big"):
                self.replaced("endianness", node, '"little"')
            case ast.Constant(str(value)) if re.fullmatch(r">[BHIQ]+", value):
                self.replaced("endianness", node, f'"<{value[1:]}"')
            case ast.Name(name) if name in self.siblings:
                self.replaced("flag", node, self.siblings[name])
            case ast.Name(name) if name.startswith("LIMIT_"):
                self.replaced("constant", node, f"({name} + 1)")
        for child in ast.iter_child_nodes(node):
            self.child(child)


def candidates(package: Path = PACKAGE, files: Sequence[str] = tuple(SOURCES)) -> list[Mutant]:
    """Every change that an operator can make, in the order of the sources."""
    found: list[Mutant] = []
    for file in files:
        found += _Finder(file, (package / file).read_bytes()).found
    return found


def select(found: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """``count`` of them, in turn of each operator, and of each file and function as few as can be.

    Which come first is chance, but of each by itself: others that come or go do not change it.
    """
    chances: dict[Mutant, bytes] = {}
    alike: Counter[str] = Counter()
    for mutant in found:
        name = repr((seed, mutant.file, mutant.function, mutant.operator, mutant.text))
        chances[mutant] = hashlib.sha256(f"{name} {alike[name]}".encode()).digest()
        alike[name] += 1
    waiting: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in sorted(found, key=chances.__getitem__):
        waiting[mutant.operator].append(mutant)
    used: Counter[tuple[str, ...]] = Counter()
    chosen: list[Mutant] = []
    while len(chosen) < count and any(waiting.values()):
        for operator in sorted(waiting):
            if waiting[operator] and len(chosen) < count:
                mutant = min(
                    waiting[operator], key=lambda m: (used[m.file, m.function], used[(m.file,)])
                )
                waiting[operator].remove(mutant)
                used.update([(mutant.file, mutant.function), (mutant.file,)])
                chosen.append(mutant)
    return chosen


class Variants:
    """The package ``original``, and variants of it, each in a directory of its own."""

    def __init__(self, directory: Path, original: Path = PACKAGE) -> None:
        self.directory: Final = directory
        self.base: Final = directory / "original"
        ignored = shutil.ignore_patterns("*.so", "*.pyc")
        shutil.copytree(original, self.base / "savevm", ignore=ignored)

    def source(self, mutant: Mutant) -> bytes:
        """What the mutant changes, as it was at first."""
        return (self.base / "savevm" / mutant.file).read_bytes()

    @contextmanager
    def planted(self, mutant: Mutant) -> Iterator[Path]:
        """Where the variant is."""
        with tempfile.TemporaryDirectory(dir=self.directory) as name:
            package = Path(name)
            # With what was compiled of all the other modules.
            shutil.copytree(self.base / "savevm", package / "savevm", copy_function=os.link)
            path = package / "savevm" / mutant.file
            for old in (path, *path.parent.glob(f"__pycache__/{path.stem}.*")):
                old.unlink()
            path.write_bytes(mutant.apply(self.source(mutant)))
            yield package
