from __future__ import annotations

import pickle

from kmeans_dask.errors import UserError


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
