"""What a conformance run says: to people, to programs, and to CI. Pure."""

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from rich.text import Text

from secctl.conformance.run import Result, Verdict
from secctl.render import clean

_STYLES = {Verdict.KEPT: "green", Verdict.BROKEN: "bold red", Verdict.NOT_CHECKED: "dim", Verdict.NOT_OFFERED: "dim"}
_SKIPPED = (Verdict.NOT_CHECKED, Verdict.NOT_OFFERED)


def text(address: str, results: Sequence[Result]) -> Text:
    """A line for each check, below it why a clause is broken or not checked, and a sentence at the end."""
    out = Text()
    verdicts = max(len(verdict) for verdict in Verdict)
    clauses = max((len(result.clause) for result in results), default=0) + 2
    for result in results:
        out.append(f"{result.verdict:{verdicts}}", _STYLES[result.verdict]).append(
            f"  {f'[{result.clause}]':{clauses}}  {result.says}\n"
        )
        if result.why:
            out.append(f"{'':{verdicts + clauses + 4}}{clean(result.why)}\n", _STYLES[result.verdict])
    return out.append(f"{_sum(address, results)}\n", "bold")


def _sum(address: str, results: Sequence[Result]) -> str:
    broken = sorted({result.clause for result in results if result.verdict is Verdict.BROKEN})
    made = sum(result.verdict not in _SKIPPED for result in results)
    reasons = {Verdict.NOT_CHECKED: "could not be made", Verdict.NOT_OFFERED: "are of what it does not offer"}
    skipped = {why: sum(result.verdict is verdict for result in results) for verdict, why in reasons.items()}
    left_out = "".join(f" {count} checks {why}." for why, count in skipped.items() if count)
    if broken:
        return f"The action server at {address} breaks {len(broken)} clauses of the contract: {', '.join(broken)}.{left_out}"
    return f"The action server at {address} keeps the contract in {made} checks.{left_out}"


def shape(address: str, results: Sequence[Result]) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "address": address,
        "checks": [
            {"clause": r.clause, "says": r.says, "verdict": str(r.verdict), "why": r.why, "seconds": round(r.seconds, 3)}
            for r in results
        ],
    }


def junit(address: str, results: Sequence[Result]) -> str:
    """The same as JUnit's XML: a test case for each check, in a class for each clause."""
    counts = {"failures": (Verdict.BROKEN,), "skipped": _SKIPPED}
    suite = ElementTree.Element("testsuite", name=f"action server {address}", tests=str(len(results)), errors="0")
    for name, verdicts in counts.items():
        suite.set(name, str(sum(result.verdict in verdicts for result in results)))
    suite.set("time", f"{sum(result.seconds for result in results):.3f}")
    for result in results:
        case = ElementTree.SubElement(suite, "testcase", classname=result.clause, name=result.says, time=f"{result.seconds:.3f}")
        match result.verdict:
            case Verdict.BROKEN:
                ElementTree.SubElement(case, "failure", message=clean(result.why))
            case Verdict.NOT_CHECKED | Verdict.NOT_OFFERED:
                ElementTree.SubElement(case, "skipped", message=clean(result.why))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
