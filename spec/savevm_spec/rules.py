"""The rules of ``rules.toml``, by id."""

from functools import cache
from typing import Final, Literal, NamedTuple

ERRNOS: Final = ("EINVAL", "EIO", "ENOENT", "ENOTSUP", "ERANGE", "EFBIG")


class Rule(NamedTuple):
    """One normative sentence.  ``errno`` is None for rules whose violation is only reported."""

    id: str
    level: Literal["MUST", "SHOULD", "MAY"]
    binds: tuple[str, ...]
    violation: Literal["reject", "report"]
    errno: str | None
    sentence: str
    at: str
    since: str | None
    until: str | None
    errata: str | None
    origin: str


@cache
def rules() -> dict[str, Rule]:
    """All rules in the order of the file."""
    # Not needed as long as no rule is broken, and then start-up time counts.
    import tomllib
    from pathlib import Path

    table = tomllib.loads(Path(__file__).with_name("rules.toml").read_text("utf-8"))
    return {
        id: Rule(
            id=id,
            level=entry["level"],
            binds=tuple(entry["binds"]),
            violation=entry["violation"],
            errno=entry.get("errno"),
            sentence=entry["sentence"],
            at=entry["at"],
            since=entry.get("since"),
            until=entry.get("until"),
            errata=entry.get("errata"),
            origin=entry["origin"],
        )
        for id, entry in table.items()
    }
