"""Read a config from a YAML file and overrides, and report the first mistake in one line."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from kmeans_dask.config.base import Section
from kmeans_dask.config.cluster import Cluster, Tls
from kmeans_dask.config.sections import Config, Evaluate, Features, Fit, Ingest, Input, Quantize, Report
from kmeans_dask.errors import UserError

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""Folder, archive, array, table, list of paths or glob pattern, local or as a URL; one or several."""

SectionT = TypeVar("SectionT", bound=Section)

_RENAMED = {
    "ingest.fit": "ingest.resize, and its value resize is now stretch",
    "cluster.workers": "cluster.n_workers",
    "cluster.threads": "cluster.threads_per_worker",
    "cluster.memory": "cluster.memory_limit",
}
"""Keys of version 0.1, still found in old configs and run folders, with their new names."""


def load_config(path: str | Path, overrides: Sequence[str] = (), cluster: str | None = None) -> Config:
    """Read and check a config.

    Parameters
    ----------
    path
        YAML file.
    overrides
        ``KEY=VALUE`` with a dotted key and a YAML value, for example ``fit.k=[10,256]``.
    cluster
        Replacement of the section ``cluster``: the address of a scheduler, such as ``tcp://127.0.0.1:8786``, or a YAML
        file with the keys of the section. With a ``tls://`` address the config's ``cluster.tls`` still applies.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        The file cannot be read, or a key or value is invalid. The message names the first one.
    """
    raw = _read_yaml(Path(path) if isinstance(path, str) else path)
    for override in overrides:
        _apply(raw, override)
    if cluster is not None:
        raw["cluster"] = _raw_cluster(cluster, raw)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_message(error)}") from None


def load_cluster(cluster: str) -> Cluster:
    """Read and check the value of ``--cluster``.

    Parameters
    ----------
    cluster
        Address of a scheduler, or YAML file with the keys of the section ``cluster``; certificates require a file.

    Returns
    -------
    Cluster

    Raises
    ------
    UserError
        The file cannot be read, or a key or value is invalid.
    """
    try:
        return Cluster.model_validate(_raw_cluster(cluster, {}))
    except ValidationError as error:
        raise UserError(f"{cluster}: {_first_message(error)}") from None


def check_section(kind: type[SectionT], **values: Any) -> SectionT:
    """Check keyword arguments as the keys of one config section.

    Parameters
    ----------
    kind
        Class of the section.
    **values
        Its keys.

    Returns
    -------
    Section

    Raises
    ------
    UserError
        A key or value is invalid. The message names the first one.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_first_message(error)) from None


def input_of(source: Source, **keys: Any) -> Input:
    """Return the config section ``input`` of a source given as a path, or several.

    Parameters
    ----------
    source
        Path or URL, or a sequence of them.
    **keys
        The other keys of the section.

    Returns
    -------
    Input

    Raises
    ------
    UserError
        A key or value is invalid.
    """
    sources = [source] if isinstance(source, (str, os.PathLike)) else source
    return check_section(Input, path=[str(each) for each in sources], **keys)


def _raw_cluster(cluster: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Section ``cluster`` from a file or an address; a ``tls://`` address keeps the certificates of the raw config."""
    if "://" not in cluster:
        return _read_yaml(Path(cluster))
    section = raw.get("cluster")
    tls = section.get("tls") if isinstance(section, dict) and cluster.startswith("tls://") else None
    return {"kind": "address", "address": cluster, "tls": tls}


def check_sources(source: Input) -> None:
    """Check cheaply that the local files and folders named in the config exist.

    Parameters
    ----------
    source
        Section ``input`` of the config.

    Raises
    ------
    UserError
        One does not exist. Patterns and URLs are not checked.
    """
    named = [("input.path", name) for name in source.path or []]
    if source.holdout_source is not None:
        named.append(("input.holdout", source.holdout_source))
    if source.table is not None:
        named.append(("input.table", source.table))
    for key, name in named:
        path = os.path.abspath(os.path.expanduser(name))
        if not (os.path.lexists(path) or "://" in name or re.search(r"[*?\[{]", name)):
            raise UserError(f"{key}={name}: no such file or folder ({path}); give an existing one")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}; give an existing YAML file") from None
    except ValueError as error:  # invalid UTF-8, or a NUL character in the name
        raise UserError(f"{path} is not valid YAML: {error}") from None
    raw = _parse(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} contains a {type(raw).__name__}; a config must be a mapping of keys, such as name: mnist"
        )
    return raw


def _parse(text: str, where: str) -> Any:
    """Parse YAML; error messages start with `where`."""
    try:
        return yaml.safe_load(text)
    # besides YAMLError: ValueError (month 99, 5,000 digits), AttributeError (!!timestamp x), IndexError (!!int ''),
    # TypeError, RecursionError (3,000 brackets)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} is not valid YAML: {reason}") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key of the raw config in place."""
    dotted, sign, text = override.partition("=")
    keys = dotted.split(".")
    if not sign or not all(keys):
        raise UserError(f"{override!r} is not KEY=VALUE; give a dotted key and a value, for example fit.k=[10,256]")
    try:
        value = (
            text if text.startswith("*") else _parse(text, "value")
        )  # a glob pattern, which YAML would parse as an alias
    except UserError:
        raise UserError(f"{override!r}: the value is not valid YAML; quote it, for example name='a: b'") from None
    section = raw
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise UserError(f"{override!r}: {'.'.join(keys[:depth])} is a value, not a section")
    section[keys[-1]] = value


def _first_message(error: ValidationError) -> str:
    """Describe the first problem in one line: key, value, and what is allowed."""
    problem = error.errors(include_url=False)[0]
    # drop the parts that are not keys: positions in lists, and the tags of the union type of fit.k
    keys = [part for part in problem["loc"] if isinstance(part, str) and part not in ("auto", "list")]
    key = ".".join(keys)
    if problem["type"] == "extra_forbidden" and key in _RENAMED:
        return f"key {key} is now called {_RENAMED[key]}"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; allowed keys: {_keys_of_section(keys[:-1])}"
    if problem["type"] == "missing" and len(keys) == len(problem["loc"]):
        return f"key {key} is missing"
    bounds = problem.get("ctx", {})
    messages = {
        "missing": "too few values",
        "too_short": f"too few values, at least {bounds.get('min_length')} required",
        "too_long": f"too many values, at most {bounds.get('max_length')} allowed",
        "tuple_type": "must be a list of values, such as [64, 64]",
        "string_too_short": "must not be empty; give a value, or remove the key",
        "model_type": f"must be a section with keys: {_keys_of_section(keys)}",
    }
    message = messages.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    if isinstance(problem["input"], (str, int, float, list, bool, type(None))) or problem["type"] == "string_type":
        return f"{key}={_shown(problem['input'])}: {message[:1].lower()}{message[1:]}"
    return f"{key}: {message}" if key else message


def _shown(value: Any) -> str:
    """Shorten a value for a message: with YAML anchors a file of one kilobyte can expand to 10^9 entries."""
    short = reprlib.Repr()
    short.maxlist = short.maxdict = 10
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, 200, 200, 40
    try:
        return short.repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a very large number"


def _keys_of_section(keys: Sequence[str]) -> str:
    section: type[BaseModel] = Config
    sections: dict[str, type[BaseModel]] = {
        "input": Input, "ingest": Ingest, "features": Features, "fit": Fit, "evaluate": Evaluate,
        "quantize": Quantize, "report": Report, "cluster": Cluster, "tls": Tls,
    }  # fmt: skip
    for key in keys:
        section = sections.get(key, section)
    return ", ".join(section.model_fields) or "none"
