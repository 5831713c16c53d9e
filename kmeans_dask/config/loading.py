"""A YAML file and overrides become a checked config; whatever is wrong with them is one line."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from kmeans_dask.config.cluster import Cluster, Tls
from kmeans_dask.config.sections import Config, Evaluate, Features, Fit, Ingest, Input, Quantize, Report
from kmeans_dask.errors import UserError

_RENAMED = {
    "ingest.fit": "ingest.resize, and its value resize is now stretch",
    "cluster.workers": "cluster.n_workers",
    "cluster.threads": "cluster.threads_per_worker",
    "cluster.memory": "cluster.memory_limit",
}
"""Keys of version 0.1, which configs and run folders from then still have."""


def load_config(path: str | Path, overrides: Sequence[str] = (), cluster: str | None = None) -> Config:
    """Read and check a config.

    Parameters
    ----------
    path
        YAML file.
    overrides
        ``KEY=VALUE`` with a dotted key and a YAML value, for example ``fit.k=[10,256]``.
    cluster
        Replaces the section ``cluster``: an address such as ``tcp://127.0.0.1:8786``, with which only ``cluster.tls``
        stays, or a YAML file that holds the section.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        The file cannot be read, or a key or value is not allowed. The message names the first offender.
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
    """Read and check what ``--cluster`` names.

    Parameters
    ----------
    cluster
        An address, or a YAML file that holds the section ``cluster``; certificates stand in such a file.

    Returns
    -------
    Cluster

    Raises
    ------
    UserError
        The file cannot be read, or a key or value is not allowed.
    """
    try:
        return Cluster.model_validate(_raw_cluster(cluster, {}))
    except ValidationError as error:
        raise UserError(f"{cluster}: {_first_message(error)}") from None


def _raw_cluster(cluster: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Section ``cluster`` of a file, or of an address, with which the certificates of the raw config stay."""
    if "://" not in cluster:
        return _read_yaml(Path(cluster))
    section = raw.get("cluster")
    tls = section.get("tls") if isinstance(section, dict) and cluster.startswith("tls://") else None
    return {"kind": "address", "address": cluster, "tls": tls}


def check_sources(source: Input) -> None:
    """Check that the files and folders of this machine that the config names are there, which costs nothing.

    Parameters
    ----------
    source
        The config's section ``input``.

    Raises
    ------
    UserError
        One is missing. Patterns and URLs are not looked at.
    """
    named = [("input.path", name) for name in source.path or []]
    if source.holdout_source is not None:
        named.append(("input.holdout", source.holdout_source))
    if source.table is not None:
        named.append(("input.table", source.table))
    for key, name in named:
        path = os.path.abspath(os.path.expanduser(name))
        if not (os.path.lexists(path) or "://" in name or re.search(r"[*?\[{]", name)):
            raise UserError(f"{key}={name}: there is no such file or folder ({path}); give an existing one")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}; give an existing YAML file") from None
    except ValueError as error:  # no UTF-8, or a name with NUL
        raise UserError(f"{path} is not valid YAML: {error}") from None
    raw = _parse(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}; a config is a mapping of keys, such as name: mnist")
    return raw


def _parse(text: str, where: str) -> Any:
    """Parse YAML; `where` is what the message begins with."""
    try:
        return yaml.safe_load(text)
    # beside YAMLError: ValueError (month 99, 5,000 digits), AttributeError (!!timestamp x), IndexError (!!int ''),
    # TypeError, RecursionError (3,000 brackets)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} is not valid YAML: {reason}") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key of the raw config in place."""
    dotted, sign, text = override.partition("=")
    keys = dotted.split(".")
    if not sign or not all(keys):
        raise UserError(f"{override!r} is not KEY=VALUE; write a dotted key, for example fit.k=[10,256]")
    try:
        value = text if text.startswith("*") else _parse(text, "value")  # a pattern, which YAML takes for an alias
    except UserError:
        raise UserError(f"{override!r}: the value is not valid YAML; quote it, for example name='a: b'") from None
    section = raw
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise UserError(f"{override!r}: {'.'.join(keys[:depth])} is a value, it has no keys below it")
    section[keys[-1]] = value


def _first_message(error: ValidationError) -> str:
    """One line for the first problem: key, value, what is allowed."""
    problem = error.errors(include_url=False)[0]
    # no keys are: a position in a list, and which of the kinds of fit.k a value was taken for
    keys = [part for part in problem["loc"] if isinstance(part, str) and part not in ("auto", "list")]
    key = ".".join(keys)
    if problem["type"] == "extra_forbidden" and key in _RENAMED:
        return f"key {key} is now called {_RENAMED[key]}"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; allowed here: {_keys_of_section(keys[:-1])}"
    if problem["type"] == "missing" and len(keys) == len(problem["loc"]):
        return f"key {key} is missing"
    bounds = problem.get("ctx", {})
    messages = {
        "missing": "too few values",
        "too_short": f"too few values, it has at least {bounds.get('min_length')}",
        "too_long": f"too many values, it has at most {bounds.get('max_length')}",
        "tuple_type": "not a list of values, such as [64, 64]",
        "string_too_short": "empty; write a text, or leave the key out",
        "model_type": f"not a section; write keys below it: {_keys_of_section(keys)}",
    }
    message = messages.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    if isinstance(problem["input"], (str, int, float, list, bool, type(None))) or problem["type"] == "string_type":
        return f"{key}={_shown(problem['input'])}: {message[:1].lower()}{message[1:]}"
    return f"{key}: {message}" if key else message


def _shown(value: Any) -> str:
    """Write a value briefly: YAML's anchors can make a list of a kilobyte that has 10^9 entries when written out."""
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
