from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmeans_dask.report.page import SCRIPTS, as_data, content_policy, write_report
from kmeans_dask.report.thumbnails import encode_webp, pack
from tests.support.page import Page

HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '" onmouseover="alert(1)',
    "]]>\u2028\u2029",
]
TILES = np.arange(5 * 8 * 6, dtype=np.uint8).reshape(5, 8, 6, 1)


def page(folder: Path, title: str = "run", **data: Any) -> Page:
    path = folder / "report.html"
    write_report(path, title, data, {"items": pack(TILES)}, [encode_webp(TILES[0], lossless=True)])
    assert list(folder.glob("*.partial")) == []
    return Page(path)


def test_data_round_trip(tmp_path: Path):
    data = {"items": [1, 2.5, None, True], "names": {"ключ": ["ü", "\n", "a\\udce9b"]}}

    read = page(tmp_path, **data).data

    assert {key: read[key] for key in data} == data
    assert read["title"] == "run"
    layout = {"width": 6, "height": 8, "pitch": [6, 8], "across": 32, "count": 5}
    assert read["sheets"] == {"items": layout}


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_labels_never_become_markup(tmp_path: Path, text: str):
    harmless = page(tmp_path, "run", path="a.png")

    hostile = page(tmp_path, text, path=text, **{text: [text]})

    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in harmless.elements]
    assert hostile.data["path"] == hostile.data["title"] == text
    assert hostile.data[text] == [text]
    assert not [name for _, attributes in hostile.elements for name in attributes if name.startswith("on")]
    assert text in hostile.text  # the heading


def test_policy_allows_only_the_scripts_of_the_page(tmp_path: Path):
    parsed = page(tmp_path)
    (policy,) = (a["content"] for tag, a in parsed.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    executed = [text for attributes, text in parsed.scripts if "type" not in attributes]

    assert len(executed) == 2 + len(SCRIPTS)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in executed]
    assert rules["script-src"].split() == hashes
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert set(rules) == {"default-src", "script-src", "img-src", "style-src", "base-uri", "form-action"}


def test_page_references_nothing_external(tmp_path: Path):
    parsed = page(tmp_path)

    for tag, attributes in parsed.elements:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "action", "srcset", "data"):
            assert str(attributes.get(name, "data:")).startswith("data:")
    own = "".join(text for attributes, text in parsed.scripts if "type" not in attributes and len(text) < 50_000)
    assert own.count('"use strict";') == len(SCRIPTS)
    assert re.findall(r"fetch\(|XMLHttp|WebSocket|innerHTML|adjacentHTML|document\.write|eval\(", own) == []


def test_images_are_embedded(tmp_path: Path):
    parsed = page(tmp_path)

    np.testing.assert_array_equal(np.asarray(parsed.image("image-0").convert("L")), TILES[0, :, :, 0])
    np.testing.assert_array_equal(np.asarray(parsed.image("items-0").convert("L"))[:, 6:12], TILES[1, :, :, 0])


def test_file_names_that_are_not_utf8_are_escaped():
    assert as_data({"path": "caf\udce9<.png"}) == '{"path":"caf\\\\udce9\\u003c.png"}'


def test_nan_raises():
    with pytest.raises(ValueError):
        as_data([float("nan")])


def test_policy_without_scripts_allows_none():
    assert "script-src ;" in content_policy([])


def test_failed_write_keeps_the_old_page(tmp_path: Path):
    page(tmp_path, words="old")
    with pytest.raises(ValueError):
        page(tmp_path, words=float("nan"))

    assert Page(tmp_path / "report.html").data["words"] == "old"
