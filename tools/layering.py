"""Checks who imports whom: the two implementations must not know each other.

Reads every import of the four source roots.  Exits with 1 and names each import that the table
does not allow.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = {f"savevm_spec.{m}" for m in ("constants", "rules", "dialects", "devices")}

# Module prefix → the project's packages that it may import; the longest prefix counts.
ALLOWED = {
    "savevm_spec": {"savevm_spec"},
    **dict.fromkeys(DATA, DATA),
    "savevm": {"savevm", *DATA},
    # The commands put everything together.
    "savevm.cli": {"savevm", "savevm_spec"},
    "savevm_conformance": {"savevm_conformance", "savevm_spec"},
    # Runs the reference in this process.
    "savevm_conformance.adapters": {"savevm_conformance", "savevm_spec", "savevm"},
    "savevm_fuzz": {"savevm_fuzz", "savevm_conformance", "savevm_spec"},
    # Run the reference in this process, too.
    "savevm_fuzz.coverage": {"savevm_fuzz", "savevm_conformance", "savevm_spec", "savevm"},
    "savevm_fuzz.targets": {"savevm_fuzz", "savevm_conformance", "savevm_spec", "savevm"},
}
OURS = {prefix.partition(".")[0] for prefix in ALLOWED}


def within(module: str, packages: set[str]) -> bool:
    return any(module == p or module.startswith(p + ".") for p in packages)


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name.partition(".")[0] in OURS]


def main() -> int:
    broken = 0
    for root in ("spec", "reference", "conformance", "fuzz"):
        for path in sorted((ROOT / root).glob("savevm*/**/*.py")):
            module = ".".join(path.relative_to(ROOT / root).with_suffix("").parts)
            module = module.removesuffix(".__init__")
            prefix = max((p for p in ALLOWED if within(module, {p})), key=len)
            for line, name in imports(path):
                if not within(name, ALLOWED[prefix]):
                    print(f"{path.relative_to(ROOT)}:{line}: {module} must not import {name}")
                    broken = 1
    return broken


if __name__ == "__main__":
    sys.exit(main())
