"""What is written of a chaos run is what is read of it."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from evidence_support import at, delivery, given, healthy
from sec_model.commands import Pause

from sec.chaos.check import Violation, check
from sec.chaos.faults import CannotInject, check_etcd
from sec.chaos.history import Answer, ClientCall, Cluster, DamagedHistory, Fault, Writer, read_deliveries, read_events, write_line
from sec.chaos.plan import FaultKind
from sec.chaos.report import About, faults_injected, html

ABOUT = About("sec chaos run --seed 7", "1.2.3", "3.6.0", ("sec-1", "sec-2", "sec-3"))


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    events = [
        *healthy().events,
        given("s", 3, "c-1", Pause("für heute")),
        Fault("kill", "kill", "sec-1", at(1), at(2), "leader"),
        Fault("failpoint", "stop", "sec-1", at(1), at(2), point="after_commit"),
        Fault("oneway", "oneway", "etcd-1,etcd-2", at(1), at(2), other="sec-1"),
        Cluster(at(1), "sec-1", ("sec-1", "sec-2")),
    ]
    writer = Writer(tmp_path / "history.jsonl")
    for event in events[:3]:
        writer.write(event)
    writer.close()
    writer = Writer(tmp_path / "history.jsonl")
    for event in events[3:]:
        writer.write(event)
    writer.close()
    read = read_events(tmp_path / "history.jsonl")
    assert read == events
    assert all(event.answer is Answer.OK for event in read if isinstance(event, ClientCall)), "what is read is checked by identity"


@pytest.mark.parametrize("line", ["{", "[1]", '{"event": "unheard of"}', '{"event": "milestone", "what": "start"}'])
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f'{{"event": "milestone", "what": "start", "at_us": 1}}\n{line}\n')
    with pytest.raises(DamagedHistory, match="Line 2 of"):
        read_events(path)


def test_a_delivery_is_two_lines_or_one_when_the_server_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "server-1.journal.jsonl"
    about = {"saga_id": "s", "node": "a", "phase": "do", "key": "u/a", "epoch": 3, "attempt": 1, "sec_node": "sec-2"}
    with path.open("w") as file:
        write_line(file, {"id": "1", "at_us": 10, **about})
        write_line(file, {"id": "2", "at_us": 20, **about})
        write_line(file, {"id": "1", "outcome": "output", "end_us": 30})
    answered, cut_off = read_deliveries(path)
    assert (answered.server, answered.at_us, answered.outcome, answered.end_us) == ("server-1", 10, "output", 30)
    assert (cut_off.at_us, cut_off.outcome, cut_off.end_us) == (20, "", 0)


@pytest.mark.parametrize("version", ["3.5.1", "3.5.5", "3.4.21", "no version"])
def test_members_of_an_etcd_that_loses_data_are_not_killed(version: str) -> None:
    with pytest.raises(CannotInject, match="can lose what it acknowledged"):
        check_etcd([FaultKind.KILL, FaultKind.ETCD], version)
    check_etcd([FaultKind.KILL], version)


@pytest.mark.parametrize("version", ["3.4.23", "3.5.6", "3.6.0"])
def test_members_of_a_sound_etcd_may_be_killed(version: str) -> None:
    check_etcd([FaultKind.ETCD], version)


def test_the_report_shows_the_lanes_the_faults_and_the_takeovers() -> None:
    killed = Fault("kill", "kill", "sec-1", at(5), at(9), "owner")
    evidence = replace(healthy(), events=[*healthy().events, killed])
    page = html(ABOUT, evidence, check(evidence))
    assert "every invariant holds" in page
    assert all(f">{lane}</text>" in page for lane in ("sec-1", "sec-2", "sec-3", "server-1", "server-2"))
    assert "kill (owner) for 4.0 s, from 5.0 s on" in page
    assert "sec-2 took 1 sagas over at 10.1 s" in page
    assert "http" not in page, "it needs nothing else"
    ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + len("</svg>")])


def test_the_report_shows_links_at_both_ends_and_counts_them() -> None:
    faults = [
        Fault("oneway", "oneway", "etcd-1,etcd-2", at(5), at(7), other="sec-1"),
        Fault("partition", "partition", "sec-2", at(5), at(7), other="client,etcd-1,etcd-2,sec-1,sec-3,server-1,server-2"),
        Fault("failpoint", "stop", "sec-3", at(5), at(7), point="after_commit"),
    ]
    repeated = [replace(delivery("well", 15.0, "b"), again=True)] * 2
    evidence = replace(healthy(), events=[*healthy().events, *faults], deliveries=[*healthy().deliveries, *repeated])
    assert faults_injected(evidence) == {
        "oneway between etcd and sec": 1,
        "partition between all and sec": 1,
        "stop of sec at after_commit": 1,
        "repeat of a dispatch": 2,
    }
    page = html(ABOUT, evidence, [])
    assert all(f">{lane}</text>" in page for lane in ("sec-1", "etcd-1", "etcd-2", "client"))
    assert page.count("oneway from etcd-1,etcd-2 to sec-1 for 2.0 s, from 5.0 s on") == 3, "a lane each"
    assert "stop at after_commit for 2.0 s, from 5.0 s on" in page


def test_the_report_tells_violations_and_says_what_it_says_as_text() -> None:
    page = html(ABOUT, healthy(), [Violation(5, "<b>", "1 < 2")])
    assert '<h1 class="violated">Chaos run: 1 violations</h1>' in page
    assert "Saga &quot;&lt;b&gt;&quot;: 1 &lt; 2" in page
    assert '<td>The effects in the world are all of a saga&#x27;s or none, each had once.</td><td><span class="violated">' in page
