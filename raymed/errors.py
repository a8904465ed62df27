"""The one exception a user's mistake raises."""


class UsageError(ValueError):
    """A mistake of the user's, in words: the file or key, the rule, the value, what to do.

    The command line prints the message and exits with code 2; nothing else catches it.
    """
