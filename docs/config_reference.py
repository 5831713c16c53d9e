"""The page reference/config.md: a table for each section, from the fields of `kmeans_dask.config` alone.

`on_page_markdown` is a hook of MkDocs. A key's description is the docstring of its field; its default and the values
that are allowed come from the JSON schema that pydantic derives from the field.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kmeans_dask.config.base import as_list
from kmeans_dask.config.sections import Config

MARKER = "<!-- config keys -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker by the tables."""
    return markdown.replace(MARKER, config_reference()) if MARKER in markdown else markdown


def config_reference() -> str:
    """Return one table for the top level, and one for each section."""
    return "\n\n".join(_table(name, section) for name, section in sections(Config))


def sections(model: type[BaseModel], name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the dotted name and the model of every section; the top level has the name ''."""
    yield name, model
    for key, field in model.model_fields.items():
        if below := _section_of(field):
            yield from sections(below, f"{name}.{key}".lstrip("."))


def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Return the docstring under each field of a section.

    Not by pydantic's `use_attribute_docstrings`, which would cost every command 30 ms.
    """
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: text.value.value
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _table(name: str, section: type[BaseModel]) -> str:
    schema = Config.model_json_schema()["$defs"][section.__name__] if name else Config.model_json_schema()
    texts = descriptions(section)
    rows = [
        f"| `{f'{name}.{key}'.lstrip('.')}` | {_values(schema['properties'][key], field)} | {_default(field)} "
        f"| {' '.join(texts.get(key, '').split())} |"
        for key, field in section.model_fields.items()
        if not _section_of(field)
    ]
    head = f"## {name}" if name else "## Top level"
    table = ["", "| key | values | default | |", "|---|---|---|---|", *rows] if rows else []
    return "\n".join([head, "", (section.__doc__ or "").strip(), *table])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "–"
    text = yaml.safe_dump(field.default, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


def _values(schema: dict[str, Any], field: FieldInfo) -> str:
    """Say in words what the JSON schema of a key allows."""
    words = _words(schema)
    return words.replace("list of", "one or a list of", 1) if as_list in _validators(field) else words


def _words(schema: dict[str, Any]) -> str:
    if options := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(_words(option) for option in options if option.get("type") != "null")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema["type"]:
        case "array":
            items = schema.get("prefixItems") or [schema["items"]] * schema.get("maxItems", 0)
            return f"[{', '.join(map(_words, items))}]" if items else f"list of {_words(schema['items'])}"
        case "integer" | "number":
            limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
            bounds = ", ".join(f"{sign} {schema[limit]:,}" for limit, sign in limits.items() if limit in schema)
            return f"{schema['type']} {bounds}".strip()
        case "boolean":
            return "`true`, `false`"
        case _:
            return "text"


def _validators(field: FieldInfo) -> list[Any]:
    """Functions of the validators that a field has at any depth of its annotation."""
    todo, functions = [field.annotation, *field.metadata], []
    while todo:
        each = todo.pop()
        functions.append(getattr(each, "func", None))
        todo += [*get_args(each), *getattr(each, "__metadata__", ())]
    return functions
