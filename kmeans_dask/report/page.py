"""The report: one HTML file that needs no server and no network.

What a run has to tell is one JSON value and some pictures; the scripts beside the template draw it. Names and labels
come from strangers' files: they stand in blocks that no browser runs, the scripts make them text and never markup, and
the page's content security policy allows the scripts named by their hashes, no other one and no request.
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

from kmeans_dask.report.thumbnails import Sheets, data_uri
from kmeans_dask.storage.object_store import location
from kmeans_dask.storage.publish import publish

SCRIPTS = ("dom", "tiles", "charts", "overview", "clusters", "map", "colours", "start")
"""In the order in which they are run."""

_LIBRARY = ("bokeh", "bokeh-api")


def write_report(
    path: str | Path, title: str, data: Mapping[str, Any], sheets: Mapping[str, Sheets], pictures: Sequence[bytes] = ()
) -> None:
    """Write a report, published by one rename.

    Parameters
    ----------
    path
        HTML file; its folder exists.
    title
        Heading of the page, for example the name of the run.
    data
        What the scripts read, of JSON values. Its keys are those that `jobs.report` collects.
    sheets
        ``items`` and ``centres``: their tiles.
    pictures
        WebP files, which ``data`` names by their numbers.

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
    told = {**data, "title": title, "sheets": {name: part.layout for name, part in sheets.items()}}
    scripts = [*(_library(name) for name in _LIBRARY), *(_template(f"{name}.js") for name in SCRIPTS)]
    blocks = {f"picture-{i}": data_uri(picture) for i, picture in enumerate(pictures)}
    for name, part in sheets.items():
        blocks |= {f"{name}-{i}": data_uri(picture) for i, picture in enumerate(part.pictures)}
    page = environment.get_template("report.html").render(
        title=title,
        policy=content_policy(scripts),
        style=Markup(_template("page.css")),
        data=Markup(as_data(told)),
        pictures=blocks,
        scripts=[Markup(script) for script in scripts],
    )
    with publish(location(path)) as partial:
        # file names may hold bytes that are no UTF-8; they become readable backslash escapes
        partial.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def as_data(value: Any) -> str:
    """Write JSON that may stand inside a script element.

    Parameters
    ----------
    value
        Of JSON values, without NaN.

    Returns
    -------
    str
        ``<`` is escaped, as JSON allows inside strings: nothing ends the element, and nothing begins a comment.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # a lone surrogate stands for a byte of a file name that is no UTF-8; it becomes a readable backslash escape
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\\\u{ord(found[0]):04x}", text)
    return text.replace("<", "\\u003c")


def content_policy(scripts: Sequence[str]) -> str:
    """Return the content security policy of a page with these scripts: they may run, and nothing may be loaded.

    Parameters
    ----------
    scripts
        Their texts.

    Returns
    -------
    str
        Pictures may come from the page itself; Bokeh styles its elements by rules it writes.
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
    """Return a script of the installed Bokeh."""
    path = Path(bokehjs_path()) / "js" / f"{name}.min.js"
    return path.read_text(encoding="utf-8")
