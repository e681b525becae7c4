"""The base of all errors of the product, and those of the core."""


class SagaError(Exception):
    """Base of every error that says something about a saga. The message is a whole sentence that names it.

    `definite` is true when what was asked for has certainly not happened. `retryable` is true when asking again can succeed.
    """

    definite: bool = True
    retryable: bool = False


class IllegalTransition(SagaError):
    """A record does not fit the state it meets. The state is as it was before."""


class CorruptLog(SagaError):
    """A log that cannot be folded, or read at all. The saga is left alone until an operator has looked at it."""
