"""The pytest plugin, in a pytest of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import savevm_conformance
from savevm_conformance.cases import Selection, load_cases
from savevm_conformance.locate import vectors_directory

pytest_plugins = ["pytester"]

TEMPLATE = Path(savevm_conformance.__file__).parent / "templates" / "adapter.py"
TARGET = f"--savevm-target=cmd:{sys.executable} {TEMPLATE}"
# Where the package is installed, pytest finds the plugin by itself.
PLUGIN = (
    () if entry_points(group="pytest11", name="savevm") else ("-p", "savevm_conformance.plugin")
)


Run = Callable[..., pytest.RunResult]


# It runs in another directory, where relative paths lead elsewhere.
PATH = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PYTHONPATH", PATH)

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess(*PLUGIN, "-p", "no:cacheprovider", *arguments)

    return run


@pytest.fixture
def wrong(tmp_path: Path) -> str:
    """A target that says a wrong offset for what ends too early."""
    text = TEMPLATE.read_text().replace(
        '"class": "truncated", "offset": len(data)', '"class": "truncated", "offset": 1'
    )
    (tmp_path / "wrong.py").write_text(text)
    return f"--savevm-target=cmd:{sys.executable} {tmp_path / 'wrong.py'}"


def headers() -> int:
    return len(load_cases(vectors_directory(), Selection(frozenset({"header"}))))


def test_one_item_for_each_case_and_role(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_of_somebody(): pass")
    result = run(TARGET, "--savevm-area=header", "-v")
    result.assert_outcomes(passed=headers() + 1)
    result.stdout.fnmatch_lines(
        [
            f"*collected {headers() + 1} items",
            "*savevm::header/reject/magic-wrong[[]reader[]] PASSED*",
        ]
    )
    assert result.ret == 0


def test_nothing_without_the_option(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_of_somebody():
            ours = {name for name in sys.modules if name.startswith(("savevm", "construct"))}
            assert ours <= {"savevm_conformance", "savevm_conformance.plugin"}
            assert not ours & {"click", "rich", "jsonschema"}
        """
    )
    result = run("--savevm-area=header")
    result.assert_outcomes(passed=1)


def test_skips_tell_why(run: Run) -> None:
    result = run(TARGET, "--savevm-area=configuration", "-rs")
    assert result.parseoutcomes()["skipped"] > 10
    result.stdout.fnmatch_lines(["SKIPPED * it does not declare *ram-4*", "SKIPPED * type 5"])
    assert result.ret == 0


def test_failures_tell_what_was_expected(run: Run, wrong: str) -> None:
    result = run(wrong, "--savevm-rule=header.truncated", "-k", "magic-cut or shortest")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*_ header/reject/magic-cut[[]reader[]] _*",
            "fail",
            "expected  reject header.truncated truncated at 2",
            "got       reject truncated at 1",
            "          offset: 1, not 2",
            "rules     header.truncated",
            f"stream    {vectors_directory()}/header/reject/magic-cut/stream.bin",
        ],
        consecutive=True,
    )
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("glob", "outcomes", "code"),
    [
        ("header/reject/magic-cut", {"xfailed": 1, "passed": 1}, 0),
        ("header/*", {"xfailed": 1, "failed": 1}, 1),
        ("header/accept/*", {"failed": 2}, 1),
    ],
)
def test_known_failures(
    run: Run, wrong: str, tmp_path: Path, glob: str, outcomes: dict[str, int], code: int
) -> None:
    known = tmp_path / "known.toml"
    known.write_text(f"[[failure]]\ncases = ['{glob}']\nwhy = 'It cannot count.'\n")
    result = run(
        wrong,
        f"--savevm-known={known}",
        "-k",
        "magic-cut or shortest",
        "-rx",
        "--savevm-area=header",
    )
    result.assert_outcomes(**outcomes, deselected=headers() - 2)
    assert result.ret == code
    if "xfailed" in outcomes:
        result.stdout.fnmatch_lines(["XFAIL *magic-cut[[]reader[]] - It cannot count."])
    if glob == "header/*":
        result.stdout.fnmatch_lines(["it passes, but is a known failure"])


def test_roles_and_marks(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_of_somebody(): pass")
    arguments = ("--savevm-target=reference", "--savevm-role=writer", "--savevm-area=section")
    result = run(*arguments, "-m", "savevm", "--strict-markers")
    writes = [
        case for case in load_cases(vectors_directory()) if case.id.startswith("section/write")
    ]
    result.assert_outcomes(passed=len(writes), deselected=1)


def test_vectors_of_ones_own(run: Run, tmp_path: Path) -> None:
    for name in ("case.toml", "expect.json", "stream.bin"):
        path = tmp_path / "mine" / "header" / "reject" / "empty" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((vectors_directory() / "header/reject/empty" / name).read_bytes())
    result = run(TARGET, f"--savevm-vectors={tmp_path / 'mine'}")
    result.assert_outcomes(passed=1)


def test_in_several_processes(run: Run) -> None:
    pytest.importorskip("xdist")
    result = run(TARGET, "--savevm-area=header", "-n2")
    result.assert_outcomes(passed=headers())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--savevm-target=nobody",), "no target 'nobody'*"),
        (("--savevm-target=cmd:false",), "cmd:false: the adapter ended with exit code 1"),
        ((TARGET, "--savevm-role=rider"), "no role 'rider'; there are *"),
        ((TARGET, "--savevm-known=/nowhere/known.toml"), "*No such file*"),
        ((TARGET, "--savevm-area=nowhere"), "no vector is for what *"),
        ((TARGET, "--savevm-role=writer"), "no vector is for what *"),
    ],
)
def test_nothing_to_run(run: Run, arguments: tuple[str, ...], why: str) -> None:
    result = run(*arguments)
    result.stdout.fnmatch_lines(["*ERROR collecting savevm*", why])
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_adapters_end_with_the_session(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "adapter.py"
    end = f"\nopen({str(tmp_path / 'ended')!r}, 'a').write('.')\n"
    path.write_text(TEMPLATE.read_text() + end)
    run(f"--savevm-target=cmd:{sys.executable} {path}", "--savevm-area=header").assert_outcomes(
        passed=headers()
    )
    # One that introduced itself, and one for all items.
    assert (tmp_path / "ended").read_text() == ".."


def test_the_plugin_imports_nothing() -> None:
    code = (
        "import sys, savevm_conformance.plugin\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"construct", "click", "rich", "savevm", "savevm_spec"} & set(done.stdout.split())
