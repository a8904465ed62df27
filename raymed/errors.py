"""The exception for mistakes of the user."""


class UsageError(ValueError):
    """The user made a mistake. The message gives the file or key, the rule, the value and a remedy.

    The command line prints the message and exits with code 2; nothing else catches it.
    """
