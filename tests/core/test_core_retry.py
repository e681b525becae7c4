"""Retry arithmetic: when the next call is made, how long it may take, and when it is given up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sec_model import DEFAULT_RETRY, DEFAULT_UNDO_RETRY, RetryPolicy

from sec.core.retry import NextCall, next_call

PLAIN = RetryPolicy(max_attempts=5, initial_backoff_s=1.0, max_backoff_s=5.0, multiplier=2.0, jitter=0.5, attempt_timeout_s=10.0)
BOUNDED = RetryPolicy(
    max_attempts=5, initial_backoff_s=1.0, max_backoff_s=5.0, jitter=0.0, attempt_timeout_s=10.0, overall_timeout_s=30.0
)


@pytest.mark.parametrize(
    ("calls_made", "draw", "delay_s"),
    [
        (0, 0.0, 0.0),
        (0, 0.9, 0.0),
        (1, 0.0, 1.0),
        (2, 0.0, 2.0),
        (3, 0.0, 4.0),
        (4, 0.0, 5.0),
        (1, 0.5, 0.75),
        (2, 0.5, 1.5),
        (4, 0.5, 3.75),
    ],
)
def test_pauses_grow_up_to_their_bound_and_jitter_shortens_them(calls_made: int, draw: float, delay_s: float) -> None:
    assert next_call(PLAIN, calls_made, 0.0, draw) == NextCall(delay_s, 10.0)


@pytest.mark.parametrize("calls_made", [5, 6, 1000])
def test_no_call_beyond_max_attempts(calls_made: int) -> None:
    assert next_call(PLAIN, calls_made, 0.0, 0.0) is None


def test_one_attempt_is_never_repeated() -> None:
    assert next_call(RetryPolicy(max_attempts=1), 0, 0.0, 0.0) == NextCall(0.0, 30.0)
    assert next_call(RetryPolicy(max_attempts=1), 1, 0.0, 0.0) is None


@pytest.mark.parametrize(
    ("calls_made", "spent_s", "expected"),
    [
        (0, 0.0, NextCall(0.0, 10.0)),
        (0, 25.0, NextCall(0.0, 5.0)),
        (1, 18.0, NextCall(1.0, 10.0)),
        (1, 19.0, NextCall(1.0, 10.0)),
        (1, 19.5, NextCall(1.0, 9.5)),
        (1, 28.5, NextCall(1.0, 0.5)),
        (1, 29.0, None),
        (1, 29.5, None),
        (0, 30.0, None),
        (0, 1e9, None),
    ],
)
def test_the_overall_timeout_bounds_calls_and_pauses(calls_made: int, spent_s: float, expected: NextCall | None) -> None:
    assert next_call(BOUNDED, calls_made, spent_s, 0.0) == expected


def test_without_an_overall_timeout_the_time_spent_does_not_matter() -> None:
    assert next_call(PLAIN, 1, 1e12, 0.0) == NextCall(1.0, 10.0)


def test_jitter_is_drawn_before_the_overall_timeout_is_looked_at() -> None:
    policy = RetryPolicy(initial_backoff_s=4.0, jitter=0.5, attempt_timeout_s=10.0, overall_timeout_s=30.0)
    assert next_call(policy, 1, 26.0, 0.0) is None
    assert next_call(policy, 1, 26.0, 0.5) == NextCall(3.0, 1.0)


def test_many_calls_and_large_multipliers_do_not_overflow() -> None:
    policy = RetryPolicy(max_attempts=1_000_000, multiplier=1000.0, max_backoff_s=86_400.0, jitter=0.0)
    assert not policy.problems()
    assert next_call(policy, 999_999, 0.0, 0.0) == NextCall(86_400.0, 30.0)


def test_a_multiplier_of_one_keeps_the_pauses_equal() -> None:
    policy = RetryPolicy(multiplier=1.0, jitter=0.0, initial_backoff_s=3.0)
    assert [next_call(policy, n, 0.0, 0.0) for n in range(1, 4)] == [NextCall(3.0, 30.0)] * 3


def test_the_defaults_are_those_of_the_contract() -> None:
    assert (DEFAULT_RETRY.max_attempts, DEFAULT_UNDO_RETRY.max_attempts) == (8, 20)
    assert [next_call(DEFAULT_RETRY, n, 0.0, 0.0) for n in (1, 2)] == [NextCall(0.1, 30.0), NextCall(0.2, 30.0)]
    assert next_call(DEFAULT_UNDO_RETRY, 19, 0.0, 0.0) == NextCall(30.0, 30.0)


@settings(deadline=None, max_examples=300)
@given(
    st.builds(
        RetryPolicy,
        max_attempts=st.integers(1, 1_000_000),
        initial_backoff_s=st.floats(0.001, 100),
        max_backoff_s=st.floats(100, 86_400),
        multiplier=st.floats(1, 1000),
        jitter=st.floats(0, 1),
        attempt_timeout_s=st.floats(0.001, 86_400),
        overall_timeout_s=st.none() | st.floats(0.001, 1e6),
    ),
    st.integers(0, 1_000_001),
    st.floats(0, 1e7),
    st.floats(0, 1, exclude_max=True),
)
def test_every_answer_keeps_every_bound(policy: RetryPolicy, calls_made: int, spent_s: float, draw: float) -> None:
    assert not policy.problems()
    call = next_call(policy, calls_made, spent_s, draw)
    if call is None:
        pause_s = policy.max_backoff_s if calls_made else 0.0
        in_time = policy.overall_timeout_s is None or spent_s + pause_s < policy.overall_timeout_s
        assert calls_made >= policy.max_attempts or not in_time
        return
    assert calls_made < policy.max_attempts
    assert 0 <= call.delay_s <= policy.max_backoff_s
    assert 0 < call.timeout_s <= policy.attempt_timeout_s
    if policy.overall_timeout_s is not None:
        assert spent_s + call.delay_s + call.timeout_s <= policy.overall_timeout_s * (1 + 1e-9)
