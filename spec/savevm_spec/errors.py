"""The one error of the grammar."""

from .rules import rules


class GrammarError(Exception):
    """Bytes that break a rule.

    ``rule`` is an id of ``rules.toml``, ``offset`` the absolute position of the byte that the rule
    speaks of, ``section`` the idstr of the section being read, or None between sections.
    """

    def __init__(self, rule: str, offset: int, detail: str = "") -> None:
        super().__init__(rule, offset, detail)
        self.rule = rule
        self.offset = offset
        self.section: str | None = None
        self.detail = detail

    @property
    def errno(self) -> str:
        """Error class that the rule gives, such as ``"EINVAL"``."""
        return rules()[self.rule].errno or "EINVAL"

    def __str__(self) -> str:
        where = f" in section {self.section!r}" if self.section is not None else ""
        sentence = self.detail or rules()[self.rule].sentence
        return f"{self.rule} at offset {self.offset}{where}: {sentence}"
