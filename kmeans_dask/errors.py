"""The two ways a job fails: invalid input (`UserError`), or work that could not be done (`JobError`)."""

import errno
import re

STORAGE_ERRORS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is exceeded",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ESTALE: "the file system is not available",
    errno.ENOTCONN: "the file system is not available",
    errno.EHOSTDOWN: "the file system is not available",
    errno.ETIMEDOUT: "the file system does not respond",
    errno.EIO: "input/output error of the disk or file system",
}
"""Error numbers that mean that the storage failed, not that the data is bad: the job fails, and can be resumed."""

_MAX_LENGTH = 1500
"""Maximum number of characters of a message; a single path can have 4,096."""


def without_secrets(text: str) -> str:
    """Replace the user, password, query and fragment of all URLs in a text by dots, so that it can be shown."""
    without_user = re.sub(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/'\"]*@", r"\1...@", text)
    return re.sub(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^\s?#'\"]*)[?#][^\s'\"]*", r"\1?...", without_user)


class UserError(ValueError):
    """The user's input is invalid.

    The message states the value, what is allowed and the fix. The command line prints it as one line and exits with
    status 2.
    """

    def __str__(self) -> str:
        """Return the message as one printable line without secrets of URLs, shortened if it quotes long values."""
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in without_secrets(super().__str__()))
        return line if len(line) <= _MAX_LENGTH else f"{line[: _MAX_LENGTH - 300]} ... {line[-300:]}"


class JobError(RuntimeError):
    """The job failed although its input was valid. The command line exits with status 1."""

    def __str__(self) -> str:
        """Return the message without secrets of URLs."""
        return without_secrets(super().__str__())
