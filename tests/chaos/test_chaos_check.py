"""The checks of a chaos run find what they are there to find: each history here breaks one invariant, and nothing else is found."""

from dataclasses import replace

import pytest
from evidence_support import A, B, C, at, delivery, given, had, healthy, output, with_entries
from msgspec import structs
from sec_model.commands import Abort, Pause, Resume, SkipUndo

from sec.chaos.check import Evidence, Violation, check
from sec.chaos.history import Answer, ClientCall, Milestone, Observed, Read
from sec.chaos.history import Fault as Injected
from sec.core.records import (
    Commanded,
    Epoch,
    Fault,
    LogEntry,
    SecNodeName,
    Started,
    Succeeded,
    UndoFailed,
)


def of_well(evidence: Evidence) -> list[LogEntry]:
    return list(evidence.logs["well"].entries)


def only(violations: list[Violation], invariant: int, *texts: str) -> None:
    """All that was found is about one invariant, and says so."""
    assert {violation.invariant for violation in violations} == {invariant}, [str(violation) for violation in violations]
    told = "\n".join(map(str, violations))
    assert all(text in told for text in texts), told


def test_nothing_is_found_where_all_is_well() -> None:
    assert check(healthy()) == []


# 0


def test_a_process_that_ended_by_itself() -> None:
    evidence = healthy()
    died = Injected("process", "died", "sec-2", at(31), at(31), "with status 1")
    only(check(replace(evidence, events=[*evidence.events, died])), 0, '"sec-2" ended by itself: with status 1')


def test_a_run_that_was_cut_off() -> None:
    evidence = healthy()
    only(
        check(replace(evidence, events=[e for e in evidence.events if not isinstance(e, Milestone)])), 0, "did not come to its end"
    )


def test_something_that_could_not_be_read() -> None:
    only(check(replace(healthy(), problems=["well.jsonl cannot be read"])), 0, "well.jsonl cannot be read")


# 1


def test_an_epoch_that_goes_back() -> None:
    evidence = healthy()
    entries = of_well(evidence)
    entries[-1] = structs.replace(entries[-1], epoch=Epoch(1), writer=SecNodeName("sec-1"))
    only([v for v in check(with_entries(evidence, "well", entries)) if v.invariant != 4], 1, "epoch 1 follows epoch 2")


def test_two_writers_in_one_epoch() -> None:
    evidence = healthy()
    entries = of_well(evidence)
    entries[-1] = structs.replace(entries[-1], writer=SecNodeName("sec-3"))
    found = check(with_entries(evidence, "well", entries))
    only([v for v in found if "folded" not in v.message], 1, "epoch 2 has the writers sec-2 and sec-3")


# 2


def test_a_do_that_was_dispatched_before_its_record() -> None:
    evidence = healthy()
    early = replace(evidence.deliveries[0], at_us=at(1.05))
    only(check(replace(evidence, deliveries=[early, *evidence.deliveries[1:]])), 2, 'do of "a" was dispatched before the record')


def test_an_undo_that_was_dispatched_without_a_record() -> None:
    evidence = healthy()
    stray = delivery("well", 20.5, "a", "undo", epoch=2)
    only(
        check(replace(evidence, deliveries=[*evidence.deliveries, stray])),
        2,
        'undo of "a" was dispatched, and the log has no record',
    )


def test_a_call_for_a_saga_that_is_not_there() -> None:
    evidence = healthy()
    only(check(replace(evidence, deliveries=[*evidence.deliveries, delivery("nobody", 3, "a")])), 2, 'Saga "nobody"')


def test_an_effect_before_that_of_a_parent() -> None:
    evidence = healthy()
    a, ill, b, *rest = evidence.had
    only(check(replace(evidence, had=[b, ill, a, *rest])), 2, 'the effect of "b" was had before that of "a"')


def test_a_child_that_starts_before_its_parents_outcome() -> None:
    evidence = healthy()
    entries = of_well(evidence)
    first = next(n for n, e in enumerate(entries) if e.record == Succeeded(A, output()))
    entries[first], entries[first + 1] = entries[first + 1], entries[first]
    found = [v for v in check(with_entries(evidence, "well", entries)) if "folded" not in v.message]
    only([v for v in found if v.invariant != 8], 2, "b starts before the outcome of a")


# 3


def test_an_effect_that_is_taken_back_before_that_of_a_child() -> None:
    evidence = healthy()
    first, second = [n for n, effect in enumerate(evidence.had) if effect.phase == "undo"]
    swapped = list(evidence.had)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    only(check(replace(evidence, had=swapped)), 3, 'the effect of "a" was taken back before that of "b"')


def test_the_undo_of_what_has_failed() -> None:
    evidence = healthy()
    found = check(replace(evidence, deliveries=[*evidence.deliveries, delivery("ill", 4.1, "c", "undo")]))
    only([v for v in found if v.invariant == 3], 3, '"c" has failed, and its undo was dispatched')


# 4


def test_a_saga_that_was_acknowledged_and_is_lost() -> None:
    evidence = healthy()
    submitted = ClientCall("submit", "lost", at(3), at(4), Answer.OK)
    only(check(replace(evidence, events=[*evidence.events, submitted])), 4, 'Saga "lost": its submit was acknowledged')


@pytest.mark.parametrize("answer", [Answer.UNKNOWN, Answer.REFUSED])
def test_a_saga_that_was_not_acknowledged_need_not_be_there(answer: Answer) -> None:
    evidence = healthy()
    submitted = ClientCall("submit", "never", at(3), at(4), answer)
    assert check(replace(evidence, events=[*evidence.events, submitted])) == []


def test_a_saga_that_never_ended() -> None:
    evidence = healthy()
    only(check(with_entries(evidence, "well", of_well(evidence)[:-1])), 4, "the saga is left running")


def test_sagas_that_did_not_settle_in_time() -> None:
    evidence = healthy()
    events = [replace(e, what="gave up") if isinstance(e, Milestone) and e.what == "settled" else e for e in evidence.events]
    only(check(replace(evidence, events=events)), 4, "Not all sagas had settled")


def test_a_log_that_cannot_be_read() -> None:
    evidence = healthy()
    damaged = replace(evidence.logs["well"], problem="line 3 is no record")
    only(check(replace(evidence, logs={**evidence.logs, "well": damaged})), 4, "line 3 is no record")


def stuck() -> Evidence:
    """The undo of "b" fails for good, and the effects of "a" and "b" are left."""
    evidence = healthy()
    entries = list(evidence.logs["ill"].entries)[:9]
    failed = LogEntry(10, Epoch(1), SecNodeName("sec-1"), at(5), UndoFailed(B, Fault("it cannot be undone")))
    evidence = with_entries(evidence, "ill", [*entries, failed])
    return replace(
        evidence,
        deliveries=[d for d in evidence.deliveries if (d.saga_id, d.node, d.phase) != ("ill", "a", "undo")],
        had=[h for h in evidence.had if h.phase == "do"],
        inventory=[*evidence.inventory, ("ill", "a"), ("ill", "b")],
    )


def test_a_saga_that_is_stuck_with_the_reason_is_no_violation() -> None:
    assert check(stuck()) == []


# 5


def test_an_effect_that_is_left_of_a_saga_that_was_undone() -> None:
    evidence = healthy()
    kept = [h for h in evidence.had if (h.saga_id, h.node, h.phase) != ("ill", "a", "undo")]
    found = check(replace(evidence, had=kept, inventory=[*evidence.inventory, ("ill", "a")]))
    only(found, 5, "the saga is undone, but ['a'] are left")


def test_an_effect_that_a_saga_which_is_done_does_not_have() -> None:
    evidence = healthy()
    found = check(replace(evidence, had=[h for h in evidence.had if h.node != "c"], inventory=evidence.inventory[:2]))
    only(found, 5, "the effects differ at ['c']")


def test_an_effect_that_was_had_twice() -> None:
    evidence = healthy()
    found = check(replace(evidence, had=[*evidence.had, had("well", 22, "c")]))
    only(found, 5, 'the effect of "c" was had 2 times')


def test_an_effect_that_nobody_had() -> None:
    evidence = healthy()
    only(check(replace(evidence, inventory=[*evidence.inventory, ("ill", "b")])), 5, '"b" has 1 effects in the world')


def test_an_effect_of_a_stuck_saga_at_a_node_that_failed() -> None:
    evidence = stuck()
    found = check(
        replace(evidence, had=[*evidence.had, had("ill", 3.5, "c")], inventory=[*evidence.inventory, ("ill", "c")]),
    )
    only(found, 5, '"c" has an effect in the world, but by the log it has none')


# 6


def test_a_command_that_was_acknowledged_and_never_taken_up() -> None:
    evidence = healthy()
    lost = given("well", 5, "abort-1", Abort("chaos"))
    only(check(replace(evidence, events=[*evidence.events, lost])), 6, 'the command "abort-1" was acknowledged, and never taken up')


def test_a_command_to_a_stuck_saga_that_was_never_taken_up() -> None:
    evidence = stuck()
    lost = given("ill", 6, "skip-1", SkipUndo(B, "chaos"))
    only(check(replace(evidence, events=[*evidence.events, lost])), 6, 'the command "skip-1" was acknowledged, and never taken up')


@pytest.mark.parametrize(("seconds", "answer"), [(20.9, Answer.OK), (5, Answer.UNKNOWN), (5, Answer.REFUSED)])
def test_a_command_that_need_not_be_taken_up(seconds: float, answer: Answer) -> None:
    evidence = healthy()
    late = given("well", seconds, "abort-1", Abort("chaos"), answer)
    assert check(replace(evidence, events=[*evidence.events, late])) == []


def test_a_command_of_which_the_owner_could_not_hear_before_the_saga_ended() -> None:
    evidence = healthy()
    unheard = given("well", 18, "abort-1", Abort("chaos"))
    cut = Injected("oneway", "oneway", "etcd-1", at(17), at(22), other="sec-2")
    assert check(replace(evidence, events=[*evidence.events, unheard, cut])) == []
    elsewhere = replace(cut, other="sec-3")
    found = check(replace(evidence, events=[*evidence.events, unheard, elsewhere]))
    only(found, 6, 'the command "abort-1" was acknowledged, and never taken up')


def test_a_command_that_is_taken_up_twice() -> None:
    evidence = healthy()
    entries = of_well(evidence)
    resumed = next(n for n, e in enumerate(entries) if isinstance(e.record, Commanded) and e.record.command_id == "resume-1")
    again = structs.replace(entries[resumed], record=Commanded("resume-1", "chaos", Resume(), "it is not paused"))
    found = check(with_entries(evidence, "well", [*entries[: resumed + 1], again, *entries[resumed + 1 :]]))
    only([v for v in found if "folded" not in v.message], 6, "taken up 2 times")


def test_a_command_that_nobody_gave() -> None:
    evidence = healthy()
    events = [e for e in evidence.events if not (isinstance(e, ClientCall) and e.command_id == "pause-1")]
    only(check(replace(evidence, events=events)), 6, 'nobody gave the command "pause-1"')


def test_a_command_that_is_taken_up_as_another() -> None:
    evidence = healthy()
    events = [
        given("well", 2.4, "pause-1", Pause("for another reason")) if isinstance(e, ClientCall) and e.command_id == "pause-1" else e
        for e in evidence.events
    ]
    only(check(replace(evidence, events=events)), 6, "taken up as another one than was given")


# 7


def test_a_start_while_the_saga_is_paused() -> None:
    evidence = healthy()
    entries = of_well(evidence)
    start = next(n for n, e in enumerate(entries) if e.record == Started(C))
    entries[start], entries[start - 1] = entries[start - 1], entries[start]
    found = [v for v in check(with_entries(evidence, "well", entries)) if "folded" not in v.message]
    only(found, 7, "c starts while the saga is paused")


def test_a_dispatch_while_the_saga_is_paused() -> None:
    evidence = healthy()
    again = delivery("well", 15.0, "b", epoch=2)
    found = check(replace(evidence, deliveries=[*evidence.deliveries, again]))
    only(found, 7, 'the do of "b" was dispatched 12.5 s after the saga was paused')


def test_what_was_held_up_on_its_way_is_no_dispatch_while_paused() -> None:
    evidence = healthy()
    again = delivery("well", 15.0, "b", epoch=2)
    hung = Injected("servers", "stop", "server-1", at(2.4), at(15.0))
    assert check(replace(evidence, deliveries=[*evidence.deliveries, again], events=[*evidence.events, hung])) == []


def test_a_dispatch_by_a_node_whose_lease_had_ended() -> None:
    evidence = healthy()
    late = delivery("well", 25.0, "b", epoch=1)
    hung = Injected("stop", "stop", "sec-1", at(4), at(24.9))
    found = check(replace(evidence, deliveries=[*evidence.deliveries, late], events=[*evidence.events, hung]))
    only(found, 7, 'dispatched by "sec-1" 15.0 s after another node had taken the saga over')


def test_a_call_that_was_under_way_when_its_node_was_stopped_is_sent_later() -> None:
    evidence = healthy()
    hung = Injected("stop", "stop", "sec-1", at(3.1), at(24.9))
    late = delivery("well", 25.0, "b", epoch=1)
    assert check(replace(evidence, deliveries=[*evidence.deliveries, late], events=[*evidence.events, hung])) == []
    later = delivery("well", 26.0, "b", epoch=1)
    found = check(replace(evidence, deliveries=[*evidence.deliveries, later], events=[*evidence.events, hung]))
    only(found, 7, 'dispatched by "sec-1" 16.0 s after')


def test_a_call_that_was_about_to_be_made_when_its_node_was_stopped_is_sent_later() -> None:
    evidence = healthy()
    hung = Injected("failpoint", "stop", "sec-1", at(6), at(24.9), point="before_call")
    late = delivery("well", 25.0, "b", epoch=1)
    assert check(replace(evidence, deliveries=[*evidence.deliveries, late], events=[*evidence.events, hung])) == []
    elsewhere = replace(hung, point="after_commit")
    found = check(replace(evidence, deliveries=[*evidence.deliveries, late], events=[*evidence.events, elsewhere]))
    only(found, 7, 'dispatched by "sec-1" 15.0 s after')


def test_a_call_that_was_held_up_on_its_link_is_delivered_later() -> None:
    evidence = healthy()
    late = delivery("well", 25.0, "b", epoch=1)
    held = Injected("partition", "partition", "sec-1", at(9), at(24.9), other="server-1,server-2")
    assert check(replace(evidence, deliveries=[*evidence.deliveries, late], events=[*evidence.events, held])) == []
    for other in ("server-2", "etcd-1", "sec-2"):
        elsewhere = replace(held, other=other)
        found = check(replace(evidence, deliveries=[*evidence.deliveries, late], events=[*evidence.events, elsewhere]))
        only(found, 7, 'dispatched by "sec-1" 15.0 s after')


def test_a_node_that_cannot_hear_that_its_lease_was_revoked_goes_by_its_own_deadline() -> None:
    evidence = healthy()
    late = delivery("well", 13.0, "b", epoch=1)
    revoked = Injected("lease", "lease", "sec-1", at(9.9), at(9.9))
    cut = Injected("partition", "partition", "etcd-1", at(9), at(14), other="sec-1")
    assert check(replace(evidence, deliveries=[*evidence.deliveries, late], events=[*evidence.events, revoked, cut])) == []
    for faults in ([revoked], [cut], [revoked, replace(cut, other="sec-2")]):
        found = check(replace(evidence, deliveries=[*evidence.deliveries, late], events=[*evidence.events, *faults]))
        only(found, 7, 'dispatched by "sec-1" 3.0 s after')


def test_what_an_action_server_repeats_is_no_dispatch() -> None:
    evidence = healthy()
    repeated = replace(delivery("well", 15.0, "b", epoch=1), again=True)
    assert check(replace(evidence, deliveries=[*evidence.deliveries, repeated])) == []


def test_what_an_action_server_repeats_has_no_effect_of_its_own() -> None:
    evidence = healthy()
    repeated = replace(delivery("ill", 9.0, "b"), again=True)
    effects = [*evidence.had, had("ill", 9.0, "b")]
    found = check(
        replace(evidence, deliveries=[*evidence.deliveries, repeated], had=effects, inventory=[*evidence.inventory, ("ill", "b")])
    )
    only([v for v in found if v.invariant == 5], 5, "the saga is undone, but ['b'] are left")


# 8


def seen(evidence: Evidence, *records: Observed) -> Evidence:
    return replace(evidence, events=[*(e for e in evidence.events if not isinstance(e, Observed)), *records])


def test_a_watcher_that_is_shown_a_record_again() -> None:
    evidence = healthy()
    records = [e for e in evidence.events if isinstance(e, Observed)]
    only(check(seen(evidence, *records, records[1])), 8, "a watcher was shown record 2 where record 5 belongs")


def test_a_watcher_that_missed_a_record() -> None:
    evidence = healthy()
    records = [e for e in evidence.events if isinstance(e, Observed)]
    only(check(seen(evidence, records[0], *records[2:])), 8, "a watcher was shown record 3 where record 2 belongs")


def test_a_record_that_was_shown_and_is_gone() -> None:
    evidence = healthy()
    records = [e for e in evidence.events if isinstance(e, Observed)]
    records[3] = replace(records[3], writer="sec-3")
    only(check(seen(evidence, *records)), 8, "a watcher was shown record 4 (succeeded), which the log has not got")


def test_a_reader_that_sees_a_log_go_back() -> None:
    evidence = healthy()
    back = Read("r", "well", 5, at(3.0), at(3.1))
    only(check(replace(evidence, events=[*evidence.events, back])), 8, "a reader saw 6 records, and then only 4")


def test_a_reader_that_saw_more_than_there_is() -> None:
    evidence = healthy()
    ahead = Read("r", "well", 99, at(3.0), at(3.1))
    only(check(replace(evidence, events=[*evidence.events, ahead])), 8, "a reader saw 98 records, and in the end there were fewer")
