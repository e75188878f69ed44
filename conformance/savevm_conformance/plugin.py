"""A pytest plugin: ``pytest --savevm-target=TARGET`` has a test item for each case and role.

They are marked ``savevm``.  Without that option there are none, and nothing is imported.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from savevm_conformance.cases import Case
    from savevm_conformance.results import Result
    from savevm_conformance.runner import Crew


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, all of them about the target."""
    group = parser.getgroup("savevm", "conformance with the savevm stream")
    add = group.addoption
    add("--savevm-target", metavar="TARGET", help="As of `savevm conformance run`.")
    add("--savevm-area", action="append", default=[], help="Only vectors of this area.")
    add("--savevm-rule", action="append", default=[], help="Only vectors of this rule.")
    add("--savevm-role", metavar="ROLE", help="Only in this role.")
    add(
        "--savevm-known",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="Known failures, besides those that the suite has.",
    )
    add("--savevm-vectors", type=Path, metavar="DIR", help="Vectors other than the suite's own.")


def pytest_configure(config: pytest.Config) -> None:
    """The mark."""
    config.addinivalue_line("markers", "savevm: a conformance vector of the savevm stream")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The suite stands beside what is found in files."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        if collector.config.getoption("savevm_target") is not None:
            suite: Suite = Suite.from_parent(collector, name="savevm", nodeid="savevm")
            report.result.append(suite)
    return report


class Suite(pytest.Collector):
    """The target on the vectors, with the processes that its items share."""

    crew: "Crew"

    def collect(self) -> Iterator[pytest.Item]:
        """An item for each case and role.

        Raises:
            CollectError: no such target, or vectors or known failures that are none.
        """
        try:
            yield from self._collect()
        except (OSError, ValueError) as error:
            raise self.CollectError(str(error)) from error

    def _collect(self) -> Iterator[pytest.Item]:
        from savevm_conformance.cases import Selection, load_cases
        from savevm_conformance.known import known_failures
        from savevm_conformance.locate import vectors_directory
        from savevm_conformance.protocol import ROLES
        from savevm_conformance.runner import introduce, pairs

        option: Any = self.config.getoption
        if (role := option("savevm_role")) not in (None, *ROLES):
            raise ValueError(f"no role {role!r}; there are {', '.join(ROLES)}")
        self.target = introduce(option("savevm_target"))
        self.known = known_failures(self.target, option("savevm_known"))
        wanted = Selection(frozenset(option("savevm_area")), frozenset(option("savevm_rule")))
        cases = load_cases(option("savevm_vectors") or vectors_directory(), wanted)
        if not (work := pairs((self.target,), cases, role)):
            raise ValueError(
                "no vector is for what this target can do, in this role, area and rule"
            )
        for _, case, each in work:
            yield Vector.from_parent(self, name=f"{case.id}[{each}]", case=case, role=each)

    def setup(self) -> None:
        """Adapters are started when they are first asked."""
        from savevm_conformance.runner import Crew, Limits

        self.directory = TemporaryDirectory(prefix="savevm-")
        self.crew = Crew(Limits(), Path(self.directory.name))

    def teardown(self) -> None:
        """End them."""
        self.crew.dismiss()
        self.directory.cleanup()


class Vector(pytest.Item):
    """A case in a role."""

    def __init__(self, *, case: "Case", role: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.case = case
        self.role = role
        self.add_marker("savevm")

    def runtest(self) -> None:
        """Skip, fail as is known, fail, or pass."""
        from savevm_conformance.runner import run_case

        suite = self.parent
        assert isinstance(suite, Suite)
        result = run_case(suite.crew, suite.target, self.case, self.role, suite.known)
        if result.outcome == "skip":
            pytest.skip(result.got)
        if result.known is not None:
            pytest.xfail(result.known)
        if result.outcome != "pass" or result.unexpected:
            pytest.fail(self._told(result), pytrace=False)

    def _told(self, result: "Result") -> str:
        lines = [
            "it passes, but is a known failure" if result.unexpected else result.outcome,
            f"expected  {result.expected}",
            f"got       {result.got}",
            *(f"          {line}" for line in result.detail),
            f"rules     {', '.join(self.case.rules)}",
            f"{'state ' if self.role == 'writer' else 'stream'}    "
            f"{self.case.state if self.role == 'writer' else self.case.stream}",
        ]
        return "\n".join(lines)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where it is: the first line of its ``case.toml``."""
        return self.case.directory / "case.toml", 0, self.name
