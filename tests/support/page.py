"""Parsing a report page the way a browser does."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image


class Page(HTMLParser):
    """A parsed report page: elements with their attributes, and the text of the scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and self._open():
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.text += data

    def _open(self) -> bool:
        return self.cdata_elem == "script"  # inside a script, content is not markup

    def block(self, name: str) -> str:
        """Return the text of the script block with an id."""
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == name)
        return text

    @property
    def data(self) -> Any:
        """The JSON value that the scripts read."""
        return json.loads(self.block("data"))

    def image(self, name: str) -> Image.Image:
        """Decode an image embedded in the page."""
        kind, _, data = self.block(name).partition(",")
        assert kind == "data:image/webp;base64"
        return Image.open(io.BytesIO(base64.b64decode(data)))
