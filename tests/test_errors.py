from __future__ import annotations

import pickle

from kmeans_dask.errors import JobError, UserError


def test_user_error_is_one_printable_line() -> None:
    assert (
        str(UserError("input.path=a\nb\x1b[31m\u202e é: no such folder"))
        == r"input.path=a\nb\x1b[31m\u202e é: no such folder"
    )


def test_long_message_is_shortened_in_the_middle() -> None:
    message = str(UserError("input.path=" + "x" * 5000 + ": give a folder"))
    assert len(message) < 1600
    assert message.startswith("input.path=xxx")
    assert message.endswith("xxx: give a folder")


def test_user_error_can_be_pickled() -> None:
    assert str(pickle.loads(pickle.dumps(UserError("a\nb")))) == r"a\nb"


def test_messages_hide_secrets_of_urls() -> None:
    text = "cannot read 'https://ann:pa@ss@host/a.tar?X-Signature=abc#x', s3://key:secret@bucket/a and file://a/b.png"
    for error in (UserError(text), JobError(text)):
        assert str(error) == "cannot read 'https://...@host/a.tar?...', s3://...@bucket/a and file://a/b.png"
