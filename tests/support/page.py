"""A report as a browser reads it."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image


class Page(HTMLParser):
    """A report as a browser reads it: elements with their attributes, and the texts of the scripts."""

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
        return self.cdata_elem == "script"  # the parser is inside a script, whose content is no markup

    def block(self, name: str) -> str:
        """Text of the script block with an id."""
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == name)
        return text

    @property
    def data(self) -> Any:
        """What the scripts of the page read."""
        return json.loads(self.block("data"))

    def picture(self, name: str) -> Image.Image:
        """A picture that lies in the page."""
        kind, _, data = self.block(name).partition(",")
        assert kind == "data:image/webp;base64"
        return Image.open(io.BytesIO(base64.b64decode(data)))
