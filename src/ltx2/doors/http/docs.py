"""The OpenAPI document: bodies that are read by hand are described by the models that they are read into."""

from __future__ import annotations

from typing import Any, cast

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from ltx2.doors.http.videos import BODIES

REF = "#/components/schemas/{model}"
FILE = {"type": "string", "format": "binary"}


def add_schemas(app: FastAPI) -> None:
    """Put the models of bodies into the document of an application."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        schemas = cast("dict[str, Any]", document["components"]["schemas"])
        if "Asked" not in schemas:
            _, found = models_json_schema([(body, "validation") for body in BODIES], ref_template=REF)
            schemas |= _without_null_defaults(found["$defs"])
            schemas["AskedForm"] = _form(schemas["Asked"])
        return document

    app.openapi = openapi


def _form(asked: dict[str, Any]) -> dict[str, Any]:
    """The same fields as a form sends them: the picture as a file."""
    return asked | {"title": "AskedForm", "properties": asked["properties"] | {"input_reference": FILE}}


def _without_null_defaults(schema: Any) -> Any:
    """Left out is not null: null is refused."""
    if isinstance(schema, dict):
        fields = cast("dict[str, Any]", schema)
        return {
            name: _without_null_defaults(value)
            for name, value in fields.items()
            if not (name == "default" and value is None)
        }
    if isinstance(schema, list):
        return [_without_null_defaults(part) for part in cast("list[Any]", schema)]
    return schema
