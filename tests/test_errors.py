from __future__ import annotations

import pickle

from kmeans_dask.errors import JobError, UserError


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert (
        str(UserError("input.path=a\nb\x1b[31m\u202e é: no such folder"))
        == r"input.path=a\nb\x1b[31m\u202e é: no such folder"
    )


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    message = str(UserError("input.path=" + "x" * 5000 + ": give a folder"))
    assert len(message) < 1600
    assert message.startswith("input.path=xxx")
    assert message.endswith("xxx: give a folder")


def test_the_error_survives_the_way_from_a_worker() -> None:
    assert str(pickle.loads(pickle.dumps(UserError("a\nb")))) == r"a\nb"


def test_no_message_shows_the_secrets_of_a_url() -> None:
    text = "cannot read 'https://ann:pa@ss@host/a.tar?X-Signature=abc#x', s3://key:secret@bucket/a and file://a/b.png"
    for error in (UserError(text), JobError(text)):
        assert str(error) == "cannot read 'https://...@host/a.tar?...', s3://...@bucket/a and file://a/b.png"
