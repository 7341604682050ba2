"""The error that a tool shows as one line, without a traceback."""


class UserError(Exception):
    """A mistake in what the user gave; the message says what is wrong and what is needed."""
