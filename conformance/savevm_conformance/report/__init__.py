"""A run's results for people and for other programs; every report is made of the same `Report`."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from savevm_conformance.report.html import html
from savevm_conformance.report.junit import junit
from savevm_conformance.report.markdown import markdown
from savevm_conformance.report.terminal import show
from savevm_conformance.results import Report

__all__ = ["FORMATS", "format_of", "render", "show"]

_RENDER: Final[dict[str, Callable[[Report], str]]] = {
    "jsonl": lambda report: "".join(f"{line}\n" for line in report.lines()),
    "markdown": markdown,
    "junit": junit,
    "html": html,
}
_SUFFIXES: Final = {".jsonl": "jsonl", ".md": "markdown", ".xml": "junit", ".html": "html"}
FORMATS: Final = tuple(_RENDER)


def format_of(path: Path) -> str:
    """The format that a file's name ends in; raises ``ValueError`` where it is none."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path} does not end in {', '.join(_SUFFIXES)}")
    return _SUFFIXES[path.suffix]


def render(report: Report, kind: str) -> str:
    """The report in one of `FORMATS`."""
    return _RENDER[kind](report)
