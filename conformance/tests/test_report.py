"""The reports of a run: each says what the results say, whatever these hold."""

import base64
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from rich.console import Console

from savevm_conformance.cases import Selection, load_cases
from savevm_conformance.cli import conformance
from savevm_conformance.known import Known
from savevm_conformance.locate import vectors_directory
from savevm_conformance.report import FORMATS, render, show
from savevm_conformance.report.html import WHOLE
from savevm_conformance.report.words import STATES, name, plain, state
from savevm_conformance.results import Report, Result, StreamResult, read_report
from savevm_conformance.runner import Limits, introduce, pairs, run_cases
from savevm_spec.rules import rules

# Right about most of what it has the features for, and wrong in every way that there is.
HASTY = """
import os, time
from savevm_conformance.protocol.serve import serve

def reader(case):
    match case["id"]:
        case "header/reject/magic-wrong":
            os._exit(7)
        case "header/reject/version-4":
            raise KeyError("<ram>")
        case "header/reject/version-0":
            time.sleep(60)
        case "header/reject/magic-cut" | "header/reject/version-103":
            return {"outcome": "accept"}
        case "header/reject/empty":
            return {"outcome": "skip", "why": "no empty files"}
    detail = "\\x1b[31m<b>|`&"
    return {"outcome": case["id"].split("/")[1], "class": "malformed", "detail": detail}

serve("hasty", "7.2.0", {"reader": reader}, url="https://savevm.example/hasty")
"""
KNOWN = [
    Known(("header/reject/version-103",), "It takes 0x103 for 3."),
    Known(("header/accept/shortest",), "It did not read the shortest."),
]
LARGE = "stream/accept/microbit-7.2"
STREAMS = [
    StreamResult("good.bin.xz", "pass", (), {"opaque fdc": 3, "buffer x": 1}, 0.5),
    StreamResult("bad.bin", "fail", ("a and b differ: transcript.ram: <1> and 2",), {}, 0.25),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What the reference and a hasty reader make of one area, a writer's case and a large stream."""
    adapter = tmp_path_factory.mktemp("adapter") / "hasty.py"
    adapter.write_text(HASTY)
    targets = ("reference", f"cmd:{sys.executable} {shlex.quote(str(adapter))}")
    made = Report(tuple(map(introduce, targets)), "2026-01-02T03:04:05+00:00", "0.1.0")
    globs = ("header/*", "legacy/write/v2", LARGE)
    cases = load_cases(vectors_directory(), Selection(globs=globs))
    made.results += run_cases(
        pairs(made.targets, cases, None), {targets[1]: KNOWN}, limits=Limits(seconds=2)
    )
    made.results.sort(key=lambda r: (r.case, targets.index(r.target), r.role))
    made.streams += STREAMS
    return made


def of(report: Report, word: str) -> list[Result]:
    return [result for result in report.results if state(result) == word]


def hostile(report: Report) -> Report:
    """The same results, of someone who chooses every word with care."""
    evil = "\x00\x1b[2J\x9b2J\ud800\uffff </script><script>alert(1)</script> ]]> | `` [link](x) \n# head"
    one = report.targets[1]
    return Report(
        (replace(one, name=evil, version=evil, url="javascript:alert(1)"),),
        report.date,
        report.suite,
        [
            replace(r, got=evil, expected=evil, detail=(evil,), known=r.known and evil)
            for r in report.results
            if r.target == one.target
        ],
        [replace(report.streams[1], file=evil, problems=(evil,))],
    )


def test_the_run_has_every_state(report: Report) -> None:
    words = Counter(state(r) for r in report.results if r.target != "reference")
    assert set(words) >= set(STATES) - {"memory"}
    assert report.failures == 5 + 1  # crash, timeout, error, fail, unexpected; a stream
    assert {state(r) for r in report.results if r.target == "reference"} == {"pass"}


def test_nothing_run() -> None:
    nothing = Report(())
    assert all(render(nothing, kind) for kind in FORMATS)
    assert "NOTHING RUN" in shown(nothing)
    assert "nothing run" in render(nothing, "markdown")


# JSON lines


def test_json_lines_come_back(report: Report) -> None:
    text = render(report, "jsonl")
    assert read_report(text.splitlines()) == report
    *_, summary = map(json.loads, text.splitlines())
    assert summary["failures"] == report.failures
    one = report.targets[0].target
    assert summary["targets"][one] == dict(
        Counter(r.outcome for r in report.results if r.target == one)
    )


def test_report_command(report: Report, tmp_path: Path) -> None:
    lines = tmp_path / "results.jsonl"
    lines.write_text(render(report, "jsonl"))
    for kind in FORMATS:
        output = tmp_path / "output"
        arguments = ["report", str(lines), "--format", kind, "-o", str(output)]
        assert CliRunner().invoke(conformance, arguments).exit_code == 1
        assert output.read_text("utf-8") == render(report, kind)
    result = CliRunner().invoke(conformance, ["report", str(lines)])
    assert result.exit_code == 1
    assert "FAILED: 6 of" in result.output
    lines.write_text('{"kind": "nothing"}\n')
    assert CliRunner().invoke(conformance, ["report", str(lines)]).exit_code == 2


# Terminal


def shown(report: Report) -> str:
    output = io.StringIO()
    show(report, Console(file=output, width=100))
    return output.getvalue()


def test_terminal(report: Report) -> None:
    lines = shown(report).splitlines()
    for result in report.results:
        headline = f"{state(result)} {result.target} {name(result)}"
        assert lines.count(headline) == result.failed
    for result in of(report, "known"):
        assert f"known {result.target} 1: {result.known}" in lines
    assert any(line.startswith("skip ") and line.endswith("1: no empty files") for line in lines)
    assert "streams: 1/2 passed" in lines
    (verdict,) = [line for line in lines if line.startswith("FAILED")]
    skipped = len(of(report, "skip"))
    assert f"6 of {len(report.results) - skipped} results on vectors, 2 streams" in verdict
    assert f"(1 known to fail); {skipped} skipped" in verdict


def test_terminal_counts(report: Report) -> None:
    rows = {
        cells[0]: cells[1:]
        for line in shown(report).splitlines()
        if (cells := line.replace("│", " ").split())
    }
    for area in ("header", "legacy", "all"):
        for target, cell in zip(report.targets, rows[area], strict=True):
            results = [r for r in report.results if r.target == target.target]
            results = [r for r in results if area in (r.area, "all") and r.outcome != "skip"]
            passed = sum(r.outcome == "pass" for r in results)
            assert cell == (f"{passed}/{len(results)}" if results else "-")
    assert rows["writer"] == ["1/1", "-"]


def test_terminal_is_obeyed_by_nobody(report: Report) -> None:
    text = shown(hostile(report))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert "\\x1b[2J" in text


# Markdown


def tables(text: str) -> list[list[list[str]]]:
    """The tables, each a list of rows, each a list of cells; the lines of dashes are left out."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| "):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [[row for row in table if not row[0].startswith(":-")] for table in found if table]


def test_markdown_counts(report: Report) -> None:
    totals, areas = tables(render(report, "markdown"))
    head, *rows = totals
    for target, row in zip(report.targets, rows, strict=True):
        words = Counter(state(r) for r in report.results if r.target == target.target)
        assert row[0] == f"`{target.target}`"
        told = {word: int(cell) for word, cell in zip(head[2:], row[2:], strict=True)}
        assert {word: count for word, count in told.items() if count} == words
    head, *rows = areas
    assert [row[0] for row in rows] == sorted({r.area for r in report.results})
    header = dict(zip(head, next(row for row in rows if row[0] == "header"), strict=True))
    assert header["`reference`"] == "14/14"


def test_markdown_tells_every_failure(report: Report) -> None:
    text = render(report, "markdown")
    failures, _, rest = text.partition("### Known failures")
    for result in report.results:
        assert failures.count(f"- **{state(result)}** `{result.target}` ") == (
            sum(r.target == result.target and state(r) == state(result) for r in report.results)
            if result.failed
            else 0
        )
    assert "It takes 0x103 for 3." in rest
    assert "<details>" not in failures
    assert "1 of 2 passed." in text
    many = replace_results(report, 300)
    text = render(many, "markdown")
    assert text.count("<details>") == text.count("</details>") > 0
    assert "100 more." in text


def replace_results(report: Report, count: int) -> Report:
    (failure,) = of(report, "fail")
    return Report(report.targets, report.date, report.suite, [failure] * count)


def test_markdown_fits_a_summary(report: Report) -> None:
    (failure,) = of(report, "fail")
    long = replace(failure, got="x" * 100_000, detail=("y" * 100_000,) * 12)
    text = render(Report(report.targets, results=[long] * 1000), "markdown")
    assert len(text.encode()) < 1 << 20


def test_markdown_is_not_led_astray(report: Report) -> None:
    text = render(hostile(report), "markdown")
    outside = re.sub(r"(`+).*?\1", "", text)
    assert "<script" not in re.sub(r"\\.", "", outside)
    assert "](" not in re.sub(r"\\.", "", outside)
    assert not re.search("^# head", text, re.MULTILINE)
    assert all(len(row) == len(table[0]) for table in tables(text) for row in table)


# JUnit


def test_junit(report: Report) -> None:
    root = ET.fromstring(render(report, "junit"))
    *suites, streams = root
    for target, suite in zip(report.targets, suites, strict=True):
        results = [r for r in report.results if r.target == target.target]
        words = Counter(map(state, results))
        assert suite.get("name") == target.target
        counts = {
            key: int(suite.get(key, -1)) for key in ("tests", "failures", "errors", "skipped")
        }
        assert counts == {
            "tests": len(results),
            "failures": words["fail"] + words["unexpected"],
            "errors": words["crash"] + words["timeout"] + words["memory"] + words["error"],
            "skipped": words["skip"] + words["known"],
        }
        cases = suite.findall("testcase")
        assert [case.get("name") for case in cases] == [name(r) for r in results]
        for case, result in zip(cases, results, strict=True):
            assert case.get("classname") == result.area
            assert (len(case) == 0) == (state(result) == "pass")
            if result.known:
                assert result.known in (case.find("skipped").get("message") or "")  # type: ignore[union-attr]
            if result.failed and result.outcome != "pass":
                assert plain(result.got) in (case[0].text or "")
    assert streams.get("name") == "streams"
    assert (streams.get("tests"), streams.get("failures")) == ("2", "1")
    assert root.get("tests") == str(len(report.results) + 2)
    assert int(root.get("failures", 0)) + int(root.get("errors", 0)) == report.failures


def test_junit_is_xml_whatever_is_said(report: Report) -> None:
    bad = hostile(report)
    root = ET.fromstring(render(bad, "junit").encode())
    assert len(root.findall(".//testcase")) == len(bad.results) + 1


# The page


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


def test_page_has_what_it_needs(report: Report) -> None:
    page = render(report, "html")
    page.encode()
    assert "{{" not in page.replace('"{{', "")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.partition("<script type")[0])
    data = data_of(page)
    assert [rule["id"] for rule in data["rules"]][: len(rules())] == list(rules())
    assert set(data["cases"]) == {r.case for r in report.results}
    told = Counter(entry[2] for case in data["cases"].values() for entry in case["results"])
    assert told == Counter(map(state, report.results))


def test_page_has_the_bytes(report: Report) -> None:
    data = data_of(render(report, "html"))
    assert len(set(data["bytes"])) == len(data["bytes"])
    for case in load_cases(vectors_directory()):
        if case.id not in data["cases"] or case.verdict == "write":
            continue
        stream = case.stream.read_bytes()
        told = data["cases"][case.id]
        assert told["size"] == len(stream)
        pieces = [(start, base64.b64decode(data["bytes"][index])) for start, index in told["bytes"]]
        assert all(stream[start : start + len(piece)] == piece for start, piece in pieces)
        length = sum(len(piece) for _, piece in pieces)
        assert length == len(stream) if len(stream) <= WHOLE else 1024 <= length < WHOLE
        marks = [offset for offset, kind, _ in told["notes_at"] if kind == "error"]
        expect = case.expect.get("savevm", case.expect)
        assert marks == ([expect["offset"]] if expect["verdict"] == "reject" else [])
        if expect["verdict"] == "accept":
            assert told["notes_at"][0] == [0, "record", f"header {stream[7]}"]


def test_page_names_rules_without_vectors(report: Report) -> None:
    text = (vectors_directory() / "without-vector.toml").read_text("utf-8")
    why = {rule: each["why"] for each in tomllib.loads(text)["without"] for rule in each["rules"]}
    told = {rule["id"]: rule.get("without") for rule in data_of(render(report, "html"))["rules"]}
    assert {rule: reason for rule, reason in told.items() if reason} == why


def test_page_of_all_vectors_stays_small() -> None:
    target = introduce("reference")
    made = Report((target,), "2026-01-02T03:04:05+00:00", "0.1.0")
    cases = load_cases(vectors_directory())
    made.results += run_cases(pairs((target,), cases, None), {})
    assert made.failures == 0
    others = [replace(target, target=f"other-{index}") for index in range(8)]
    made.targets += tuple(others)
    made.results += [replace(r, target=o.target) for o in others for r in tuple(made.results)]
    assert len(render(made, "html").encode()) < 6 << 20


def test_page_without_vectors(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVEVM_VECTORS", str(tmp_path / "nowhere"))
    data = data_of(render(report, "html"))
    assert set(data["cases"]) == {r.case for r in report.results}
    assert data["bytes"] == []


# The page in a browser

DESKTOP, PHONE = (1280, 900), (390, 844)
# Text that cannot be told from what is behind it: of each element with text of its own, the ratio of
# contrast (WCAG 2), where it is below 4.5.
FAINT = """
const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
return [...document.body.querySelectorAll("*")].filter((element) =>
  element.checkVisibility() && element.tagName !== "SCRIPT" &&
  [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
).map((element) => {
  const [one, other] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  return [ratio, element.outerHTML.slice(0, 100)];
}).filter(([ratio]) => ratio < 4.5);
"""
# What reaches out of the page to the right and is not in a box that scrolls.
OUTSIDE = """
return [...document.body.querySelectorAll("*")].filter((element) =>
  element.checkVisibility() && !element.closest(".hexbox *") &&
  element.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map((element) => element.outerHTML.slice(0, 100));
"""
VISIBLE = """
return [...document.querySelectorAll(".matrix .rule")].filter((row) => row.checkVisibility())
  .map((row) => row.id.replace("rule-", ""));
"""


class Page:
    """The page, opened from a file in a headless Chromium."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, fragment: str, size: tuple[int, int], scheme: str) -> None:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")
        self.driver.get(self.address + fragment)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def one(self, selector: str) -> Any:
        (found,) = self.driver.find_elements("css selector", selector)
        return found

    def choose(self, field: str, value: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.one(f"select[name={field}]")).select_by_value(value)

    def until(self, script: str) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 10).until(lambda driver: driver.execute_script(script))

    def rules(self) -> set[str]:
        return set(self.run(VISIBLE))


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="no selenium: the page is not tried"
    )
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium with chromedriver: the page is not tried in a browser")
    directory = tmp_path_factory.mktemp("page")
    file = directory / "report.html"
    file.write_text(render(report, "html"), "utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        f"--user-data-dir={directory / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Page(running, file.as_uri())
    finally:
        running.quit()


@pytest.fixture
def calm(page: Page) -> Iterator[Page]:
    """The page, which must have nothing to complain of at the end."""
    page.driver.get_log("browser")
    yield page
    assert page.driver.get_log("browser") == []


def citing(report: Report, *words: str) -> set[str]:
    return {rule for r in report.results if state(r) in words for rule in r.rules}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_filters(calm: Page, report: Report, size: tuple[int, int], scheme: str) -> None:
    calm.open("", size, scheme)
    everything = calm.rules()
    assert everything >= set(rules())
    for word in ("crash", "known", "skip"):
        calm.choose("outcome", word)
        assert calm.rules() == citing(report, word)
    calm.choose("outcome", "bad")
    bad = citing(report, "crash", "timeout", "error", "fail", "unexpected")
    assert calm.rules() == bad
    calm.choose("target", "reference")
    assert calm.rules() == set()
    assert calm.one("#nothing").is_displayed()
    calm.one("button[type=reset]").click()
    assert calm.rules() == everything
    calm.choose("area", "legacy")
    assert calm.rules() == {rule for r in report.results if r.area == "legacy" for rule in r.rules}
    calm.choose("area", "")
    calm.choose("level", "SHOULD")
    assert calm.rules() == {rule.id for rule in rules().values() if rule.level == "SHOULD"}
    calm.choose("level", "")
    calm.one("input[name=q]").send_keys("MAGIC first")
    sought = {
        rule.id
        for rule in rules().values()
        if all(w in f"{rule.id} {rule.sentence}".lower() for w in ("magic", "first"))
    }
    assert "header.magic" in sought
    assert calm.rules() == sought
    assert f"{len(sought)} of" in calm.one("#count").text
    assert "q=MAGIC" in calm.run("return location.hash")
    calm.open(calm.run("return location.hash"), size, scheme)
    assert calm.rules() == sought


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_drill_down(calm: Page, size: tuple[int, int], scheme: str) -> None:
    calm.open("", size, scheme)
    button = calm.one("[id='rule-header.version'] button")
    assert button.get_attribute("aria-expanded") == "false"
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    id = "header/reject/version-103"
    calm.one(f"[data-case='{id}'] summary").click()
    calm.until(f"return !!document.querySelector(\"[data-case='{id}'] .hex\")")
    results = calm.one(f"[data-case='{id}'] .results").text
    assert "It takes 0x103 for 3." in results
    assert "reject header.version" in results
    dumped = calm.run(
        "return [...document.querySelectorAll('.hex tbody tr')].map((row) => row.cells[1].innerText)"
    )
    data = (vectors_directory() / id / "stream.bin").read_bytes()
    assert bytes.fromhex("".join(dumped)) == data
    (marked,) = calm.driver.find_elements("css selector", ".hex tr:has(mark)")
    assert "error expected here: header.version" in marked.text
    assert marked.find_element("css selector", "th").text == "4"
    assert calm.run("return location.hash") == f"#rule=header.version&case={id}"
    assert calm.run(OUTSIDE) == []
    assert (
        calm.run(
            "const root = document.documentElement; return root.scrollWidth - root.clientWidth"
        )
        == 0
    )
    assert calm.run(FAINT) == []
    button.click()
    assert not calm.one("[id='about-header.version']").is_displayed()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_deep_links(calm: Page, size: tuple[int, int]) -> None:
    calm.open(f"#case={LARGE}", size, "light")
    item = f"[data-case='{LARGE}']"
    calm.until(f'return !!document.querySelector("{item} .hex")')
    assert calm.one(f"{item} summary") == calm.driver.switch_to.active_element
    top = calm.run(f'return document.querySelector("{item}").getBoundingClientRect().top')
    assert 0 <= top < size[1] / 2
    # Of a long stream there is the beginning, and it says that there is no more.
    text = calm.one(f"{item} .hex").text
    assert "QEVM" in text
    assert "are not on this page" in text
    assert calm.run(OUTSIDE) == []
    calm.run("location.hash = '#rule=header.magic'")
    calm.until("return document.activeElement.textContent === 'header.magic'")
    assert calm.one("[id='about-header.magic']").is_displayed()
    assert calm.driver.find_elements("css selector", ".detail:not([hidden])") == [
        calm.one("[id='about-header.magic']")
    ]
    # A link to what is not there shows everything.
    calm.open("#case=no/such/case&rule=no.such.rule", size, "light")
    assert calm.rules() >= set(rules())


def test_writer_and_no_vector(calm: Page) -> None:
    calm.open("#case=legacy/write/v2", PHONE, "dark")
    calm.until("return !!document.querySelector('.state-box')")
    assert '"dialect"' in calm.one(".state-box").text
    assert calm.run(OUTSIDE) == []
    calm.open("#rule=envelope.qcow2.magic", PHONE, "dark")
    assert (
        "A disk image is a file around a stream"
        in calm.one("[id='about-envelope.qcow2.magic']").text
    )


def test_whole_streams(calm: Page) -> None:
    calm.open("", PHONE, "light")
    assert "a and b differ" in calm.one("#streams").text
    assert calm.run(OUTSIDE) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(calm: Page, scheme: str) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    calm.open("", DESKTOP, "light")
    light = calm.run(ground)
    calm.open("", DESKTOP, "dark")
    dark = calm.run(ground)
    assert light != dark
    calm.open("", DESKTOP, scheme)
    calm.run("document.querySelector('.legend').open = true")
    assert calm.run(FAINT) == []
    button = calm.one("#theme")
    assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    button.click()
    assert calm.run(ground) == (dark if scheme == "light" else light)
    assert button.get_attribute("aria-pressed") == str(scheme == "light").lower()
    assert calm.run(FAINT) == []
    calm.run("localStorage.clear()")


def test_keyboard(calm: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    calm.open("", DESKTOP, "light")
    active = calm.driver.switch_to
    calm.one("body").send_keys("/")
    assert active.active_element.get_attribute("name") == "q"
    active.active_element.send_keys("header.version")
    for _ in range(20):
        active.active_element.send_keys(Keys.TAB)
        if active.active_element.text == "header.version":
            break
    active.active_element.send_keys(Keys.ENTER)
    assert active.active_element.get_attribute("aria-expanded") == "true"
    # The next stops are the rule's own link, then its vectors.
    active.active_element.send_keys(Keys.TAB)
    active.active_element.send_keys(Keys.TAB)
    assert active.active_element.tag_name == "summary"
    active.active_element.send_keys(Keys.ENTER)
    calm.until("return !!document.querySelector('.hex')")


def test_hostile_words_stay_words(calm: Page, report: Report, tmp_path: Path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(render(hostile(report), "html"), "utf-8")
    Page(calm.driver, file.as_uri()).open("#case=header/reject/magic-cut", PHONE, "light")
    calm.until("return !!document.querySelector('.hex')")
    assert "</script><script>alert(1)</script>" in calm.one(".vector .results").text
    assert calm.run(
        "return [...document.querySelectorAll('a')].every((a) => a.protocol !== 'javascript:')"
    )
    assert calm.run(OUTSIDE) == []


# The action


def action() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="no PyYAML: the action is not tried")
    root = Path(__file__).parents[2]
    loaded: dict[str, Any] = yaml.safe_load((root / "action.yml").read_text("utf-8"))
    return loaded


class Job:
    """The action's own steps in a shell, with what GitHub would put into them."""

    def __init__(self, directory: Path, **inputs: str) -> None:
        self.definition = action()
        self.directory = directory
        given = {key: each.get("default", "") for key, each in self.definition["inputs"].items()}
        self.values = {f"inputs.{key}": value for key, value in (given | inputs).items()}
        self.values["github.action_path"] = "/nowhere"
        command = directory / "bin" / "savevm"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m savevm.cli "$@"\n')
        command.chmod(0o755)

    def run(self, step: dict[str, Any]) -> int:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))),
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(self.directory / "output"),
            "GITHUB_STEP_SUMMARY": str(self.directory / "summary"),
        }
        for key, value in step.get("env", {}).items():
            environment[key] = re.sub(
                r"\$\{\{ ([\w.-]+) \}\}", lambda match: self.values[match[1]], value
            )
        shell = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
        return subprocess.run(
            shell, cwd=self.directory, env=environment, stdout=subprocess.PIPE, timeout=100
        ).returncode

    def finish(self) -> int:
        """Run all steps but the installation; the code of the last."""
        code = 0
        for step in self.definition["runs"]["steps"]:
            if "run" in step and step["name"] != "Install":
                code = self.run(step)
                with contextlib.suppress(FileNotFoundError):
                    for line in (self.directory / "output").read_text().splitlines():
                        key, _, value = line.partition("=")
                        self.values[f"steps.{step.get('id', 'run')}.outputs.{key}"] = value
        return code


def test_action_is_whole() -> None:
    definition = action()
    assert definition["runs"]["using"] == "composite"
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(definition["runs"])))
    assert used == set(definition["inputs"])
    for step in definition["runs"]["steps"]:
        if "run" in step:
            # What is put into a script by its text could end it.
            assert step["shell"] == "bash"
            assert "${{" not in step["run"]
            assert subprocess.run(["bash", "-n", "-c", step["run"]]).returncode == 0


def test_action_passes(tmp_path: Path) -> None:
    job = Job(tmp_path, target="reference\nspec", areas="header block", report="out/of it")
    assert job.finish() == 0
    assert job.values["steps.run.outputs.code"] == "0"
    summary = (tmp_path / "summary").read_text()
    assert "## Conformance: passed" in summary
    assert [row[0] for row in tables(summary)[1]] == ["area", "block", "header"]
    assert {path.name for path in (tmp_path / "out/of it").iterdir()} == {
        f"conformance.{suffix}" for suffix in ("jsonl", "md", "xml", "html")
    }


def test_action_fails(tmp_path: Path) -> None:
    (tmp_path / "an adapter.py").write_text(HASTY.replace("time.sleep(60)", "pass"))
    known = tmp_path / "known list.toml"
    known.write_text('[[failure]]\ncases = ["header/*"]\nwhy = "It is hasty."\n')
    inputs = {"target": f"cmd:{sys.executable} 'an adapter.py'", "areas": "header"}
    assert Job(tmp_path, **inputs, rules="header.magic").finish() == 1
    assert "## Conformance: failed" in (tmp_path / "summary").read_text()
    shutil.rmtree(tmp_path / "bin")
    known.write_text('[[failure]]\ncases = ["header/reject/magic-wrong"]\nwhy = "It is hasty."\n')
    job = Job(tmp_path, **inputs, rules="header.magic", known=known.name)
    assert job.finish() == 0


def test_action_without_anything_to_run(tmp_path: Path) -> None:
    assert Job(tmp_path, target="nobody").finish() == 2
    assert "nothing was run" in (tmp_path / "summary").read_text()
