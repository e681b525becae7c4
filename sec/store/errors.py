"""What can go wrong with a saga in the store. Faults of the store itself are `sec.store.kv.KvError`."""

from sec.core.errors import SagaError


class Fenced(SagaError):
    """Another session owns the saga, or nobody does: nothing was written, and this one must let go of it."""


class SagaNotFound(SagaError):
    """No saga has this id."""


class SagaExists(SagaError):
    """Another saga has this id."""


class WrongState(SagaError):
    """The saga is not in a state in which this can be done."""


class PageTokenExpired(SagaError):
    """A listing was interrupted for too long: the store no longer has the state that it began with."""


class InvalidPageToken(SagaError):
    """A page token that no listing gave out."""
