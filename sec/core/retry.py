"""Retry arithmetic: when a call with an unknown outcome is repeated, and when that is given up. No clock and no randomness in here.

Exponential backoff with jitter that only shortens: a pause of p lasts between p * (1 - jitter) and p, so that `max_backoff_s` is a bound.
"""

from msgspec import Struct
from sec_model import RetryPolicy

SLOW_RETRY_S = 30.0
"""The least pause of calls beyond the attempts of a policy: each leaves a record, and a log must not fill up."""

_MAX_DOUBLINGS = 64
"""Exponents beyond this reach every `max_backoff_s` there can be, and would overflow."""


class NextCall(Struct, frozen=True, gc=False):
    """Call once more, after `delay_s`, for at most `timeout_s`."""

    delay_s: float
    timeout_s: float


def next_call(policy: RetryPolicy, calls_made: int, spent_s: float, draw: float) -> NextCall | None:
    """What to do after `calls_made` calls (0 or more) that took `spent_s` in all. None: the policy is exhausted.

    `draw` is a random number in [0, 1).
    """
    if calls_made >= policy.max_attempts:
        return None
    delay_s = _pause_s(policy, calls_made, draw)
    timeout_s = policy.attempt_timeout_s
    if policy.overall_timeout_s is not None:
        left_s = policy.overall_timeout_s - spent_s - delay_s
        if left_s <= 0:
            return None
        timeout_s = min(timeout_s, left_s)
    return NextCall(delay_s, timeout_s)


def next_call_of_many(policy: RetryPolicy, calls_made: int, draw: float) -> NextCall:
    """The same where nothing is ever given up. The policy says how calls are spaced; beyond its attempts they become rare."""
    delay_s = _pause_s(policy, calls_made, draw)
    if calls_made >= policy.max_attempts:
        delay_s = max(delay_s, SLOW_RETRY_S)
    return NextCall(delay_s, policy.attempt_timeout_s)


def _pause_s(policy: RetryPolicy, calls_made: int, draw: float) -> float:
    if not calls_made:
        return 0.0
    exponent = min(calls_made - 1, _MAX_DOUBLINGS)
    pause_s = min(policy.max_backoff_s, policy.initial_backoff_s * policy.multiplier**exponent)
    return pause_s * (1 - policy.jitter * draw)
