"""The two ways a job ends badly: the user's input is wrong, or the work failed."""

import re

_LONGEST = 1500
"""Characters of a message; a path can have 4,096."""


def without_secrets(text: str) -> str:
    """Return a text for people, without the secrets of the URLs in it: user, password, query and fragment."""
    without_user = re.sub(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/'\"]*@", r"\1...@", text)
    return re.sub(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^\s?#'\"]*)[?#][^\s'\"]*", r"\1?...", without_user)


class UserError(ValueError):
    """The user's input is wrong.

    The message names the value, what is allowed and the fix. The command line prints it as one line
    and exits with status 2.
    """

    def __str__(self) -> str:
        """Return the message as one line that can be printed, whatever names and values it quotes."""
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in without_secrets(super().__str__()))
        return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 300]} ... {line[-300:]}"


class JobError(RuntimeError):
    """The job failed although its input was well-formed. The command line exits with status 1."""

    def __str__(self) -> str:
        """Return the message without the secrets of URLs."""
        return without_secrets(super().__str__())
