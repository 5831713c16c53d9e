"""Use a run's report in a headless Chromium with real mouse and key events, and measure how fast it loads.

    python -m benchmarks.page RUN [SCREENSHOTS]

RUN is a run folder with a report. If SCREENSHOTS is given, images of every view are saved to that folder.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from benchmarks.browser import Browser
from benchmarks.common import table
from kmeans_dask.report.page import write_report
from kmeans_dask.report.thumbnails import encode_webp, pack

_DRAWN = "document.querySelectorAll('#main h2').length === 1"
_CHARTS = "[...document.querySelectorAll('.chart')].every((e) => e.firstElementChild)"
_LOADS = 5

Step = Callable[[Browser], Awaitable[None]]


async def load_times(browser: Browser, page: Path) -> tuple[float, float]:
    """Median seconds from navigation to the load event, and to the first view with all its charts drawn."""
    seconds = []
    for _ in range(_LOADS):
        await browser.open(page)
        await browser.until(_DRAWN)
        await browser.until(_CHARTS)
        times = await browser.run(
            "new Promise((done) => requestAnimationFrame(() => setTimeout(() => done([performance.timing.loadEventEnd -"
            " performance.timing.navigationStart, performance.now()]), 0)))"
        )
        seconds.append((times[0] / 1000, times[1] / 1000))
    return statistics.median(s[0] for s in seconds), statistics.median(s[1] for s in seconds)


async def go(browser: Browser, view: str) -> None:
    """Open a view by its URL fragment."""
    await browser.run(f"location.hash = {view!r}")
    await asyncio.sleep(0.05)
    await browser.until(_DRAWN)
    await browser.until(_CHARTS)
    await browser.until("Promise.all(sheets.values()).then(() => true)")
    await asyncio.sleep(0.3)


async def texts(browser: Browser, selector: str) -> list[str]:
    found = await browser.run(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)")
    return list(found)


def expect(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


async def filter_clusters(browser: Browser) -> None:
    """Search, sort and filter the gallery."""
    await browser.click("#nav [data-view=clusters]")
    await browser.until("document.querySelectorAll('.cards a').length > 1")
    total = await browser.run("document.querySelectorAll('.cards a').length")
    number = str(total - 1)
    await browser.click(".controls input[type=search]")
    await browser.write(number)
    found = await texts(browser, ".cards a .soft")
    expect(any(f"#{number} " in text for text in found), f"searching {number} found {found}")
    expect(len(found) < total, "searching did not filter the clusters")
    for _ in number:
        await browser.key("Backspace", 8)
    await browser.run("(() => { const s = document.querySelectorAll('.controls select')[0]; s.value = 'impure';"
                      " s.dispatchEvent(new Event('change')) })()")  # fmt: skip
    shown = await texts(browser, ".cards a .card > .soft:last-child")
    purities = [float(text.removesuffix(" %")) for text in shown if text.endswith("%")]
    expect(purities == sorted(purities) and len(purities) > 1, f"not sorted by purity: {purities[:9]}")


async def turn_clusters(browser: Browser) -> None:
    """Open a cluster with the keyboard alone, go to the next one, open and close an item."""
    await browser.run("document.querySelector('.cards a').focus()")
    await browser.key("Enter", 13, "\r")
    await browser.until("location.hash.startsWith('#cluster/')")
    first = int((await browser.run("location.hash")).split("/")[-1])
    await browser.key("ArrowRight", 39)
    await browser.until(f"!location.hash.endsWith('/{first}')")
    await go(browser, await browser.run("location.hash"))
    await browser.run("document.querySelector('button.tile').focus()")
    await browser.key("Enter", 13, "\r")
    await browser.until("document.querySelector('dialog').open")
    expect(await texts(browser, "dialog dd"), "the dialog of an item is empty")
    await browser.key("Escape", 27)
    await browser.until("!document.querySelector('dialog').open")


async def click_confusion(browser: Browser) -> None:
    """Click a cell of the confusion matrix and show its clusters and images."""
    await browser.click("#nav [data-view=confusion]")
    await browser.until(_CHARTS)
    await asyncio.sleep(0.3)
    for place in ((0.5, 0.5), (0.4, 0.45), (0.3, 0.3), (0.6, 0.6), (0.7, 0.3)):
        await browser.click(".chart", place)
        await asyncio.sleep(0.2)
        if (await browser.run("location.hash")).startswith("#cell/"):
            break
    expect((await browser.run("location.hash")).startswith("#cell/"), "no cell responds to a click")
    expect(await texts(browser, "table tbody tr"), "the cell shows no clusters")


async def move_map(browser: Browser) -> None:
    """Drag the map, zoom with wheel and keyboard, and reset it."""
    await browser.click("#nav [data-view=map]")
    await browser.until(_CHARTS)
    await asyncio.sleep(0.5)
    ranges = "(({x_range}) => [x_range.start, x_range.end])([...charts.values()][0].model)"
    start = await browser.run(ranges)
    await browser.drag(".chart", (0.5, 0.5), (0.7, 0.5))
    moved = await browser.run(ranges)
    expect(moved[0] < start[0], f"dragging did not move the map: {start} {moved}")
    await browser.run("document.querySelector('.chart').focus()")
    await browser.key("+", 187, "+")
    zoomed = await browser.run(ranges)
    expect(zoomed[1] - zoomed[0] < 0.8 * (moved[1] - moved[0]), "the key + did not zoom")
    await browser.key("0", 48, "0")
    expect(np.allclose(await browser.run(ranges), start), "the key 0 did not reset the map")
    left, top, width, height = await browser.place(".chart")
    await browser.mouse("mouseWheel", left + width / 2, top + height / 2, deltaX=0, deltaY=-240)
    await asyncio.sleep(0.3)
    wheel = await browser.run(ranges)
    expect(wheel[1] - wheel[0] < start[1] - start[0], "the wheel did not zoom")


async def compare(browser: Browser) -> None:
    """Move the slider with mouse and keyboard, and choose another K if there is one."""
    await browser.click("#nav [data-view=colours]")
    await browser.until(_CHARTS)
    cut = "document.querySelector('.stack img:nth-child(2)').style.clipPath"
    await browser.drag(".stack", (0.5, 0.5), (0.9, 0.5))
    dragged = await browser.run(cut)
    await browser.run("document.querySelector('.compare input').focus()")
    for _ in range(5):
        await browser.key("ArrowLeft", 37)
    expect(dragged != await browser.run(cut), "the keyboard did not move the slider")
    if await browser.run("document.querySelectorAll('fieldset label').length") < 2:
        return
    ends = await texts(browser, ".ends")
    await browser.click("fieldset label:last-child input")
    await asyncio.sleep(0.2)
    expect(ends != await texts(browser, ".ends"), "another K shows the same image")


async def sort_tables(browser: Browser) -> None:
    """Sort the table of models by clicking on a heading."""
    await go(browser, "overview")
    await browser.click("table th:nth-child(2) button")
    ks = [int(text) for text in await texts(browser, "#main section:first-of-type table td:nth-child(2)")]
    expect(ks == sorted(ks, reverse=True), f"not sorted by K: {ks}")


async def save(browser: Browser) -> None:
    """Save every figure of every view as CSV, SVG and PNG with its buttons, and open the files."""
    with tempfile.TemporaryDirectory() as folder:
        await browser.save_to(Path(folder))
        for view in await views_of(browser):
            await go(browser, view)
            for title in await browser.run(
                "[...document.querySelectorAll('button[aria-label^=\"save \"]')].map((e) => e.ariaLabel)"
            ):
                name, kind = re.fullmatch("save (.+) as (CSV|SVG|PNG)", title).groups()  # type: ignore[union-attr]
                await browser.click(f"button[aria-label={json.dumps(title)}]")
                file = Path(folder) / f"{name}.{kind.lower()}"
                end = time.monotonic() + 20
                while not file.exists() and time.monotonic() < end:
                    await asyncio.sleep(0.05)
                expect(file.exists(), f"{view}: {title} saved nothing")
                _check_saved(file, view)
                file.unlink()


def _check_saved(file: Path, view: str) -> None:
    """Check a saved file: an image must not be blank, and every CSV row must be as long as the heading."""
    if file.suffix == ".csv":
        heading, *rows = csv.reader(io.StringIO(file.read_text(encoding="utf-8"), newline=""))
        expect(
            rows and all(len(row) == len(heading) for row in rows),
            f"{view}: {file.name} has no rows, or rows of another length",
        )
    elif file.suffix == ".svg":
        root = ElementTree.parse(file).getroot()
        marks = [e for e in root.iter() if e.tag.rpartition("}")[2] in ("path", "text", "rect", "circle", "image")]
        expect(root.tag.endswith("svg") and len(marks) > 5, f"{view}: {file.name} has {len(marks)} marks")
    else:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGBA"))
        expect(len(np.unique(pixels.reshape(-1, 4), axis=0)) > 5, f"{view}: {file.name} is blank")


async def hostile(browser: Browser) -> None:
    """Show file names and labels that look like markup as plain text."""
    names = ["<img src=x onerror=alert(1)>.png", "</script><script>alert(1)</script>", "$$\\alert$$", "<b>bold</b>"]
    model = {
        "algorithm": "kmeans", "k": 1, "first_centre": 0, "label": [0], "size": [4], "size_holdout": [0],
        "purity": [0.25], "radius_mean": [1.0], "radius_max": [2.0], "silhouette": [0.1], "near": [[]],
        "near_distances": [[]], "nearest": [[0, 1]], "farthest": [[2]], "sample": [[3]],
        "mix": [[[0, 1], [1, 1], [2, 1], [3, 1]]], "confusion": [[i, 0, 1] for i in range(4)], "cells": {"4": [1]},
    }  # fmt: skip
    lists = {"row": [0, 1], "path": names[:2], "label": names[1:3], "reason": names[:2], "tile": [0, 1]}
    data = {
        "run": {"facts": [["items", "4"]], "shapes": [], "changes": [], "timings": [["fit", 1.0]],
                "versions": [["seed", "0"]], "config": "</script>"},
        "labels": {"names": names, "counts": [1, 1, 1, 1]}, "metrics": [], "choice": [], "models": [model],
        "scale": "", "centres_are": "centre",
        "items": {"row": [0, 1, 2, 3], "path": names, "label": [0, 1, 2, 3], "held": [0, 0, 0, 0]},
        "lists": {"label_issues": lists, "outliers": lists, "duplicates": lists}, "totals": {},
        "map": {"x": [0.0, 1.0, 2.0, 3.0], "y": [0.0, 1.0, 0.0, 1.0], "label": [0, 1, 2, 3], "tile": [0, 1, 2, 3],
                "cluster": [[0, 0, 0, 0]], "explained": [0.5, 0.2], "of": ["kmeans", 1], "centres": [[[1.5], [0.5]]]},
        "colours": {"ks": [2], "table": [{"k": 2, "images": 1, "mse": 1.0, "psnr": 40.0, "bytes": 9}],
                    "histograms": [{"k": 2, "edges": [1.0, 2.0], "counts": [1], "median": 1.5, "exact": 0}],
                    "images": [{"path": names[0], "width": 8, "height": 8, "original": 0, "versions": [
                        {"k": 2, "image": 0, "mse": 1.0, "psnr": 40.0, "bytes": 9, "palette": ["#000000"]}]}],
                    "worst": [{"k": 2, "path": names[0], "mse": 1.0, "psnr": 40.0}], "palettes": []},
        "failed": {"rows": [{"path": n, "status": "bad", "error": n} for n in names], "count": 4},
    }  # fmt: skip
    tiles = np.zeros((4, 8, 8, 1), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        sheets = {"items": pack(tiles), "centres": pack(tiles[:1])}
        write_report(page, names[1], data, sheets, [encode_webp(tiles[0], lossless=True)])
        await browser.open(page)
        await browser.until(_DRAWN)
        elements = await browser.run("document.scripts.length")
        for view in ("overview", "clusters/kmeans-1", "cluster/kmeans-1/0", "confusion/kmeans-1", "cell/kmeans-1/1/0",
                     "map/kmeans-1", "label_issues", "outliers", "duplicates", "colours", "failed"):  # fmt: skip
            await go(browser, view)
            for name in ("img[src=x]", "#main b", "#main script"):
                expect(
                    not await browser.run(f"document.querySelector({name!r})"), f"{view}: a name was rendered as {name}"
                )
        await browser.run("showItem(0)")
        expect(names[0] in "".join(await texts(browser, "dialog dd")), "the name is not shown verbatim")
        expect(await browser.run("document.scripts.length") == elements, "a script was added")
        dialogs = [event for event in browser.events if event["method"] == "Page.javascriptDialogOpening"]
        expect(not dialogs, f"a name was executed: {dialogs}")
        expect(
            not browser.console_messages() and not browser.requests(),
            f"{browser.console_messages()} {browser.requests()}",
        )


async def views_of(browser: Browser) -> list[str]:
    """URL fragments of all views of the open page."""
    names = list(
        await browser.run("[...document.querySelectorAll('#nav a')].map((a) => a.getAttribute('href').slice(1))")
    )
    models = await browser.run("DATA.models.map(modelId)")
    if models:
        names.append(f"cluster/{models[-1]}/0")
    return names


async def show_all_views(browser: Browser, page: Path, screenshots: Path | None) -> int:
    """Open every view in wide and narrow, light and dark windows, check that none overflows, and count the views."""
    await browser.open(page)
    await browser.until(_DRAWN)
    views = await views_of(browser)
    for name, width, dark in (
        ("wide", 1280, False),
        ("narrow", 390, False),
        ("dark", 1280, True),
        ("narrow-dark", 390, True),
    ):
        await browser.window(width, 900, dark=dark, mobile=width < 500)
        for view in views:
            await go(browser, view)
            beyond = await browser.run("document.documentElement.scrollWidth - innerWidth")
            expect(beyond <= 0, f"{view} is {beyond} pixels wider than a {name} window")
            background = await browser.run("getComputedStyle(document.body).backgroundColor")
            expect((background == "rgb(255, 255, 255)") != dark, f"{view}: background {background} in a {name} window")
            if screenshots:
                await browser.screenshot(screenshots / f"{name}-{view.split('/')[0]}.png")
    if screenshots:
        for view in views:
            await go(browser, view)
            await browser.print(screenshots / f"print-{view.split('/')[0]}.pdf")
    await browser.window(1280, 900)
    return len(views)


async def check(run: Path, screenshots: Path | None) -> None:
    page = run / "report.html"
    rows: list[tuple[str, str]] = [("page size", f"{page.stat().st_size / 1e6:.1f} MB")]
    async with Browser() as browser:
        await browser.window(1280, 900)
        loaded, drawn = await load_times(browser, page)
        rows += [("load event, median of 5", f"{loaded:.2f} s"), ("overview with all charts drawn", f"{drawn:.2f} s")]
        has = await browser.run("({models: DATA.models.length > 0, labels: DATA.labels.names.length > 0,"
                                " colours: DATA.colours !== null})")  # fmt: skip
        steps: list[tuple[bool, Step]] = [
            (has["models"], sort_tables), (has["models"], filter_clusters), (has["models"], turn_clusters),
            (has["models"] and has["labels"], click_confusion), (has["models"], move_map), (has["colours"], compare),
        ]  # fmt: skip
        for applies, step in steps:
            if applies:
                await step(browser)
                rows.append(((step.__doc__ or "").strip().rstrip("."), "works"))
        await save(browser)
        rows.append(((save.__doc__ or "").strip().rstrip("."), "works"))
        views = await show_all_views(browser, page, screenshots)
        rows.append((f"{views} views x wide, narrow, dark, narrow and dark: none wider than the window", "yes"))
        expect(not browser.console_messages(), f"console: {browser.console_messages()}")
        expect(not browser.requests(), f"the page requested {browser.requests()}")
        rows += [("console errors and warnings", "0"), ("requests", "0")]
        await hostile(browser)
        rows.append(((hostile.__doc__ or "").strip().rstrip("."), "works"))
        version = (await browser.send("Browser.getVersion"))["product"]
    table(f"{page} in {version}", ["what", "result"], rows)


def main() -> None:
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit(__doc__)
    screenshots = Path(sys.argv[2]) if len(sys.argv) == 3 else None
    if screenshots:
        screenshots.mkdir(parents=True, exist_ok=True)
    asyncio.run(check(Path(sys.argv[1]), screenshots))


if __name__ == "__main__":
    main()
