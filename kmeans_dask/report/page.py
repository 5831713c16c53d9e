"""The report page: one HTML file that needs neither a server nor a network.

The contents are one JSON value and a set of images; the scripts in the templates folder render them. File names and
labels are untrusted: they are embedded in blocks that browsers do not execute, the scripts insert them as text, never
as markup, and the page's content security policy allows only the scripts with the listed hashes and no requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from bokeh.util.paths import bokehjs_path
from markupsafe import Markup

from kmeans_dask.report.thumbnails import TileSheets, data_uri
from kmeans_dask.storage.object_store import location
from kmeans_dask.storage.publish import publish

SCRIPTS = ("dom", "tiles", "charts", "overview", "clusters", "map", "colours", "start")
"""Script templates in execution order."""

_BOKEH = ("bokeh", "bokeh-api")


def write_report(
    path: str | Path, title: str, data: Mapping[str, Any], tiles: Mapping[str, TileSheets], images: Sequence[bytes] = ()
) -> None:
    """Write a report page atomically.

    Parameters
    ----------
    path
        HTML file in an existing folder.
    title
        Heading of the page, for example the name of the run.
    data
        JSON values for the scripts, with the keys of `contents.PageContents.data`.
    tiles
        Tile sheets of ``items`` and ``centres``.
    images
        WebP files that `data` refers to by index.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kmeans_dask.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values = {**data, "title": title, "sheets": {name: sheets.layout for name, sheets in tiles.items()}}
    scripts = [*(_library(name) for name in _BOKEH), *(_template(f"{name}.js") for name in SCRIPTS)]
    blocks = {f"image-{i}": data_uri(image) for i, image in enumerate(images)}
    for name, sheets in tiles.items():
        blocks |= {f"{name}-{i}": data_uri(sheet) for i, sheet in enumerate(sheets.images)}
    page = environment.get_template("report.html").render(
        title=title,
        policy=content_policy(scripts),
        style=Markup(_template("page.css")),
        data=Markup(as_data(values)),
        images=blocks,
        scripts=[Markup(script) for script in scripts],
    )
    with publish(location(path)) as partial:
        # file names may contain bytes that are not UTF-8: show them as backslash escapes
        partial.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def as_data(value: Any) -> str:
    """Serialize a value to JSON that is safe inside a script element.

    Parameters
    ----------
    value
        JSON value.

    Returns
    -------
    str
        JSON with every ``<`` escaped, so that no string can end the element or begin a comment.

    Raises
    ------
    ValueError
        The value contains NaN or infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # lone surrogates represent bytes of file names that are not UTF-8: show them as backslash escapes
    text = re.sub("[\ud800-\udfff]", lambda match: f"\\\\u{ord(match[0]):04x}", text)
    return text.replace("<", "\\u003c")


def content_policy(scripts: Sequence[str]) -> str:
    """Return a content security policy that allows these scripts only, and no request.

    Parameters
    ----------
    scripts
        Source text of the scripts.

    Returns
    -------
    str
        Policy that also allows images embedded in the page, and inline styles, which Bokeh generates.
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; img-src data: blob:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _template(name: str) -> str:
    return (files("kmeans_dask.report") / "templates" / name).read_text(encoding="utf-8")


def _library(name: str) -> str:
    """Return the source of a script that comes with Bokeh."""
    path = Path(bokehjs_path()) / "js" / f"{name}.min.js"
    return path.read_text(encoding="utf-8")
