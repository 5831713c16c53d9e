"""The two ways a job ends badly: the user's input is wrong, or the work failed."""

import errno
import re

STORAGE_ERRORS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only now",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ESTALE: "the file system went away",
    errno.ENOTCONN: "the file system went away",
    errno.EHOSTDOWN: "the file system went away",
    errno.ETIMEDOUT: "the file system does not answer",
    errno.EIO: "the disk or the file system fails",
}
"""Errors of the place that is written to, not of what is written: the job ends, and can go on."""

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
