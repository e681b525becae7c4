"""The report of a chaos run: one HTML file that needs nothing else, with the faults and takeovers as a picture."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from sec.chaos.check import INVARIANTS, Evidence, Violation
from sec.chaos.history import Answer, ClientCall, Cluster, Fault, Milestone
from sec.chaos.plan import ON_LINKS, SERVERS
from sec.core.records import Commanded, Done, OwnerChanged, UndoFailed
from sec.debug import ExportedLog

SHOWN_VIOLATIONS = 200
"""A run that goes wrong altogether has more than anybody reads; the rest is in violations.txt."""
_WIDTH, _LANE, _LEFT, _TOP = 1100, 30, 90, 24
_BUCKET_US = 250_000
"""Takeovers this close are one mark."""
_COLOURS = {
    "kill": "#c0392b",
    "replace": "#7b241c",
    "stop": "#e08e0b",
    "restart": "#2471a3",
    "drain": "#7d3c98",
    "lease": "#17a589",
    "partition": "#5d4037",
    "oneway": "#a1887f",
    "delay": "#90a4ae",
    "reset": "#ec407a",
    "died": "#000000",
}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1150px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .5em 0 1.5em } td, th { padding: .2em .9em .2em 0; text-align: left; vertical-align: top }
.holds { color: #1e7e34 } .violated { color: #c0392b; font-weight: bold } code { background: #f2f2f2; padding: .1em .3em }
svg text { font: 12px system-ui, sans-serif; fill: #222 }
"""


@dataclass(frozen=True, slots=True)
class About:
    """What the head of a report says of the run."""

    command: str
    """That repeats it."""
    version: str
    etcd_version: str
    nodes: tuple[str, ...]


def ends(logs: Mapping[str, ExportedLog]) -> Counter[str]:
    """How many sagas came to which end."""
    return Counter(_end(log) for log in logs.values())


def takeovers(logs: Mapping[str, ExportedLog]) -> int:
    """How often a saga was taken over by another owner."""
    return sum(isinstance(entry.record, OwnerChanged) for log in logs.values() for entry in log.entries)


def faults_injected(evidence: Evidence) -> Counter[str]:
    """How many faults there were, by what was done, and to what kind of processes: "kill of sec", "partition between etcd and sec"."""
    found = Counter(_what(event) for event in evidence.events if isinstance(event, Fault))
    found["repeat of a dispatch"] = sum(delivery.again for delivery in evidence.deliveries)
    return +found


def _what(fault: Fault) -> str:
    ends = sorted("all" if "," in end and "client" in end else end.partition("-")[0] for end in (fault.target, fault.other) if end)
    if fault.kind in ON_LINKS:
        return f"{fault.how} between {' and '.join(ends)}"
    return f"{fault.how} of {ends[0]}" + (f" at {fault.point}" if fault.point else "")


def html(about: About, evidence: Evidence, violations: Sequence[Violation]) -> str:
    """The whole page."""
    return "\n".join(_page(about, evidence, violations)) + "\n"


def _page(about: About, evidence: Evidence, violations: Sequence[Violation]) -> Iterator[str]:
    title = "Chaos run: every invariant holds" if not violations else f"Chaos run: {len(violations)} violations"
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    yield f'<h1 class="{"violated" if violations else "holds"}">{title}</h1>'
    yield f"<p>Repeat it: <code>{escape(about.command)}</code><br>sec {escape(about.version)}, etcd {escape(about.etcd_version)}</p>"
    yield "<h2>Invariants</h2>"
    counts = Counter(violation.invariant for violation in violations)
    yield from _table(
        ("", "invariant", ""),
        ((str(n), escape(text), _verdict(counts[n])) for n, text in INVARIANTS.items()),
    )
    if violations:
        yield "<h2>Violations</h2><ul>"
        yield from (f"<li>{escape(str(violation))}</li>" for violation in violations[:SHOWN_VIOLATIONS])
        yield "</ul>"
        if len(violations) > SHOWN_VIOLATIONS:
            yield f"<p>and {len(violations) - SHOWN_VIOLATIONS} more, in violations.txt</p>"
    yield "<h2>Timeline</h2>"
    yield from _timeline(about, evidence)
    yield "<h2>Faults</h2>"
    yield from _table(
        ("fault", "times"),
        ((escape(what), str(count)) for what, count in sorted(faults_injected(evidence).items())),
    )
    yield "<h2>Sagas, by their end</h2>"
    by_shape = Counter((log.head.name, _end(log)) for log in evidence.logs.values())
    yield from _table(
        ("saga", "end", "count"), ((escape(name), end, str(count)) for (name, end), count in sorted(by_shape.items()))
    )
    yield "<h2>Calls of the clients</h2>"
    calls = Counter((e.call, str(e.answer)) for e in evidence.events if isinstance(e, ClientCall))
    yield from _table(("call", "answer", "count"), ((call, answer, str(count)) for (call, answer), count in sorted(calls.items())))
    commands = Counter(kind for e in evidence.events if isinstance(e, ClientCall) and e.answer is Answer.OK for kind in e.command)
    refused = Counter(
        bool(e.record.refused) for log in evidence.logs.values() for e in log.entries if isinstance(e.record, Commanded)
    )
    yield f"<p>Commands acknowledged: {escape(_listed(commands)) or 'none'}. Taken up: {refused[False]}, refused later: {refused[True]}.</p>"
    outcomes = Counter(delivery.outcome or "no answer" for delivery in evidence.deliveries)
    yield f"<p>Deliveries at the action servers: {escape(_listed(outcomes)) or 'none'}.</p></html>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Of cells that are HTML already."""
    yield "<table><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
    yield from ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    yield "</table>"


def _verdict(violations: int) -> str:
    return f'<span class="violated">violated {violations} times</span>' if violations else '<span class="holds">holds</span>'


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _end(log: ExportedLog) -> str:
    last = log.entries[-1].record if log.entries else None
    if isinstance(last, Done):
        return last.outcome.value
    return "stuck" if any(isinstance(entry.record, UndoFailed) for entry in log.entries) else "not settled"


# the picture


def _timeline(about: About, evidence: Evidence) -> Iterator[str]:
    milestones = {event.what: event.at_us for event in evidence.events if isinstance(event, Milestone)}
    times = [*milestones.values(), *(event.end_us for event in evidence.events if isinstance(event, Fault))]
    if not times:
        yield "<p>Nothing was recorded.</p>"
        return
    start_us, end_us = milestones.get("start", min(times)), max(times)
    scale = (_WIDTH - _LEFT - 10) / max(1, end_us - start_us)
    faults = [event for event in evidence.events if isinstance(event, Fault)]
    others = sorted({name for fault in faults for name in fault.processes} - {*about.nodes, *SERVERS})
    lanes = [*about.nodes, *SERVERS, *others]
    height = _TOP + _LANE * len(lanes) + 24

    def x(at_us: int) -> float:
        return round(_LEFT + (min(max(at_us, start_us), end_us) - start_us) * scale, 1)

    yield f'<svg viewBox="0 0 {_WIDTH} {height}" width="100%" role="img" aria-label="Faults and takeovers over time">'
    yield from _axis(x, start_us, end_us, height)
    for number, lane in enumerate(lanes):
        y = _TOP + number * _LANE
        yield f'<text x="0" y="{y + 17}">{escape(lane)}</text>'
        yield f'<rect x="{_LEFT}" y="{y + 8}" width="{x(end_us) - _LEFT}" height="12" fill="#d5e8d4"/>'
        for fault in (fault for fault in faults if lane in fault.processes):
            yield _bar(fault, x, y, start_us)
        for from_us, to_us in _leading(evidence, lane, end_us):
            yield f'<rect x="{x(from_us)}" y="{y + 22}" width="{max(1.0, x(to_us) - x(from_us)):.1f}" height="3" fill="#1a5276"/>'
        for at_us, count in _takeovers(evidence.logs, lane):
            yield (
                f'<circle cx="{x(at_us)}" cy="{y + 14}" r="{min(9.0, 2.0 + count**0.5):.1f}" fill="none" stroke="#111">'
                f"<title>{lane} took {count} sagas over at {(at_us - start_us) / 1e6:.1f} s</title></circle>"
            )
    for what, at_us in milestones.items():
        yield f'<line x1="{x(at_us)}" y1="{_TOP}" x2="{x(at_us)}" y2="{height - 22}" stroke="#888" stroke-dasharray="4 3">'
        yield f"<title>{escape(what)}</title></line>"
    yield "</svg>"
    legend = " · ".join(f'<span style="color:{colour}">■</span> {how}' for how, colour in _COLOURS.items() if how != "died")
    yield f"<p>{legend} · ○ sagas taken over · <span style='color:#1a5276'>▬</span> leader · ┆ start, healed, settled</p>"


def _bar(fault: Fault, x: Callable[[int], float], y: int, start_us: int) -> str:
    """Faults of links are thin, and below those of processes."""
    top, height = (y + 16, 4) if fault.kind in ON_LINKS else (y + 8, 12)
    width = max(1.5, x(fault.end_us) - x(fault.start_us))
    about = f"({fault.why}) " if fault.why else f"at {fault.point} " if fault.point else ""
    if fault.other:
        about = f"from {fault.target} to {fault.other} " if fault.how == "oneway" else f"between {fault.target} and {fault.other} "
    lasts_s, from_s = (fault.end_us - fault.start_us) / 1e6, (fault.start_us - start_us) / 1e6
    told = f"{fault.how} {about}for {lasts_s:.1f} s, from {from_s:.1f} s on"
    return (
        f'<rect x="{x(fault.start_us)}" y="{top}" width="{width:.1f}" height="{height}" fill="{_COLOURS.get(fault.how, "#555")}">'
        f"<title>{escape(told)}</title></rect>"
    )


def _axis(x: Callable[[int], float], start_us: int, end_us: int, height: int) -> Iterator[str]:
    seconds = (end_us - start_us) / 1e6
    step_s = next((step for step in (1, 2, 5, 10, 30, 60, 300) if seconds / step <= 15), 600)
    for at_s in range(0, int(seconds) + 1, step_s):
        at = x(start_us + at_s * 1_000_000)
        yield f'<line x1="{at}" y1="{_TOP}" x2="{at}" y2="{height - 22}" stroke="#eee"/>'
        yield f'<text x="{at}" y="{height - 6}" text-anchor="middle">{at_s} s</text>'


def _leading(evidence: Evidence, name: str, end_us: int) -> list[tuple[int, int]]:
    seen = [event for event in evidence.events if isinstance(event, Cluster)]
    found: list[tuple[int, int]] = []
    for number, event in enumerate(seen):
        until_us = seen[number + 1].at_us if number + 1 < len(seen) else end_us
        if event.leader != name:
            continue
        if found and found[-1][1] == event.at_us:
            found[-1] = (found[-1][0], until_us)
        else:
            found.append((event.at_us, until_us))
    return found


def _takeovers(logs: Mapping[str, ExportedLog], name: str) -> list[tuple[int, int]]:
    buckets = Counter(
        entry.time_us // _BUCKET_US
        for log in logs.values()
        for entry in log.entries
        if isinstance(entry.record, OwnerChanged) and entry.record.sec_node == name
    )
    return [(bucket * _BUCKET_US + _BUCKET_US // 2, count) for bucket, count in sorted(buckets.items())]
