"""Retry arithmetic: when a call with an unknown outcome is repeated, and when that is given up. No clock and no randomness in here.

Exponential backoff with jitter that only shortens: a pause of p lasts between p * (1 - jitter) and p, so that `max_backoff_s` is a bound.
"""

from dataclasses import dataclass

from sec_model import RetryPolicy

_MAX_DOUBLINGS = 64
"""Exponents beyond this reach every `max_backoff_s` there can be, and would overflow."""


@dataclass(frozen=True, slots=True)
class NextCall:
    """Call once more, after `delay_s`, for at most `timeout_s`."""

    delay_s: float
    timeout_s: float


def next_call(policy: RetryPolicy, calls_made: int, spent_s: float, draw: float) -> NextCall | None:
    """What to do after `calls_made` calls (0 or more) that took `spent_s` in all. None: the policy is exhausted.

    `draw` is a random number in [0, 1).
    """
    if calls_made >= policy.max_attempts:
        return None
    delay_s = 0.0
    if calls_made:
        exponent = min(calls_made - 1, _MAX_DOUBLINGS)
        pause_s = min(policy.max_backoff_s, policy.initial_backoff_s * policy.multiplier**exponent)
        delay_s = pause_s * (1 - policy.jitter * draw)
    timeout_s = policy.attempt_timeout_s
    if policy.overall_timeout_s is not None:
        left_s = policy.overall_timeout_s - spent_s - delay_s
        if left_s <= 0:
            return None
        timeout_s = min(timeout_s, left_s)
    return NextCall(delay_s, timeout_s)
