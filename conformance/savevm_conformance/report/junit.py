"""Results as JUnit XML: a test suite for each target, and one for the streams."""

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from savevm_conformance.report.words import name, plain, state
from savevm_conformance.results import Report, Result, StreamResult, Target


def junit(report: Report) -> str:
    """The report.

    A known failure counts as skipped, with its reason, and a pass where one was known as a failure.
    """
    root = ET.Element("testsuites", name="savevm conformance")
    for target in report.targets:
        suite = ET.SubElement(root, "testsuite", name=plain(target.target), timestamp=report.date)
        _properties(suite, target, report.suite)
        for result in report.results:
            if result.target == target.target:
                _case(suite, result)
    if report.streams:
        suite = ET.SubElement(root, "testsuite", name="streams", timestamp=report.date)
        for stream in report.streams:
            _stream(suite, stream)
    for suite in root:
        _count(suite, [suite])
    _count(root, list(root))
    ET.indent(root)
    return ET.tostring(root, "unicode", xml_declaration=True) + "\n"


def _properties(suite: ET.Element, target: Target, version: str) -> None:
    told = {
        "implementation": target.name,
        "version": target.version,
        "url": target.url or "",
        "roles": " ".join(target.roles),
        "features": " ".join(target.features),
        "savevm": version,
    }
    properties = ET.SubElement(suite, "properties")
    for key, value in told.items():
        if value:
            ET.SubElement(properties, "property", name=key, value=plain(value))


def _case(suite: ET.Element, result: Result) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=plain(result.area),
        name=plain(name(result)),
        time=f"{result.seconds:.4f}",
    )
    lines = [f"expected {result.expected}", f"got      {result.got}", *result.detail]
    lines.append(f"rules    {' '.join(result.rules)}")
    match state(result):
        case "pass":
            return
        case "known":
            message = f"known failure ({result.outcome}): {result.known}"
            ET.SubElement(case, "skipped", message=plain(message))
            return
        case "skip":
            ET.SubElement(case, "skipped", message=plain(result.got))
            return
        case "unexpected":
            message = "it passes, and is listed as a known failure"
            found = ET.SubElement(case, "failure", type="unexpected", message=message)
        case "fail":
            message = plain(next(iter(result.detail), result.got))
            found = ET.SubElement(case, "failure", type="fail", message=message)
        case outcome:
            found = ET.SubElement(case, "error", type=outcome, message=plain(result.got))
    found.text = plain("\n".join(lines))


def _stream(suite: ET.Element, stream: StreamResult) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname="streams",
        name=plain(stream.file),
        time=f"{stream.seconds:.4f}",
    )
    if stream.failed:
        kind = "failure" if stream.outcome == "fail" else "error"
        message = plain(next(iter(stream.problems), ""))
        found = ET.SubElement(case, kind, type=stream.outcome, message=message)
        found.text = plain("\n".join(stream.problems))


def _count(element: ET.Element, suites: Sequence[ET.Element]) -> None:
    cases = [case for suite in suites for case in suite.findall("testcase")]
    element.set("tests", str(len(cases)))
    for attribute, child in (
        ("failures", "failure"),
        ("errors", "error"),
        ("skipped", "skipped"),
    ):
        element.set(attribute, str(sum(case.find(child) is not None for case in cases)))
    element.set("time", f"{sum(float(case.get('time', 0)) for case in cases):.4f}")
