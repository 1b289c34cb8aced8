"""What form of answer a body wants, text, JSON or a tool call, and the answer in it. For chat completions and responses. Pure."""

import json
from typing import Any, NamedTuple

from streambatch.server.rowerrors import RowError
from streambatch.server.schemas import Fitting

KINDS = ("text", "json_object", "json_schema")
NO_JSON = RowError(
    "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
    status=400, param="messages",
)  # fmt: skip


class Call(NamedTuple):
    """A tool call: the function's name, its arguments as JSON, and whether the caller had named it."""

    name: str
    arguments: str
    forced: bool


def said_in_form(digest: str, body: dict[str, Any], text: str) -> str | Call:
    """The answer in the form that was asked for. Raises `RowError` for a form that can't be."""
    tool = _tool(digest, body)
    if tool is not None:
        name, parameters, forced = tool
        return Call(name, json.dumps(Fitting(parameters, digest, text).value()), forced)
    form, where = _form(body)
    kind = form.get("type", "text")
    if kind not in KINDS:
        told = f"Invalid value: '{kind}'. Supported values are: {', '.join(repr(one) for one in KINDS)}."
        raise RowError(told, status=400, code="invalid_value", param=f"{where}.type")
    if kind == "text":
        return text
    if kind == "json_object":
        if "json" not in json.dumps(body.get("messages", body.get("input"))).lower():
            raise NO_JSON
        return json.dumps({"answer": text})
    return json.dumps(Fitting(_schema(form, where), digest, text).value())


def _form(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The wanted form and the name of its field: `response_format`, or `text.format` of responses."""
    if isinstance(form := body.get("response_format"), dict):
        return form, "response_format"
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    return (form if isinstance(form, dict) else {}), "text.format"


def _schema(form: dict[str, Any], where: str) -> dict[str, Any]:
    given = form.get("json_schema") if where == "response_format" else form
    given = given if isinstance(given, dict) else {}
    name = f"{where}.json_schema" if where == "response_format" else where
    for field, kind in (("name", str), ("schema", dict)):
        if not isinstance(given.get(field), kind):
            told = f"Missing required parameter: '{name}.{field}'."
            raise RowError(told, status=400, code="missing_required_parameter", param=f"{name}.{field}")
    schema: dict[str, Any] = given["schema"]
    if given.get("strict") is True:
        _check_strict(given["name"], schema, where)
    return schema


def _check_strict(name: str, schema: dict[str, Any], where: str) -> None:
    """What strict mode asks of the outermost object."""
    if schema.get("type") != "object":
        raise _invalid(
            name, f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'", where
        )
    if schema.get("additionalProperties") is not False:
        raise _invalid(name, "In context=(), 'additionalProperties' is required to be supplied and to be false", where)
    properties, required = schema.get("properties"), schema.get("required")
    missing = set(properties if isinstance(properties, dict) else {}) - set(
        required if isinstance(required, list) else []
    )
    if missing:
        told = (
            "In context=(), 'required' is required to be supplied and to be an array including every key in properties"
        )
        raise _invalid(name, f"{told}. Missing '{min(missing)}'", where)


def _invalid(name: str, why: str, where: str) -> RowError:
    field = "response_format" if where == "response_format" else "text.format.schema"
    return RowError(f"Invalid schema for response_format '{name}': {why}.", status=400, param=field)


def _tool(digest: str, body: dict[str, Any]) -> tuple[str, Any, bool] | None:
    """The function to call, its parameters, and whether it was named; None where text is wanted."""
    functions = [found for found in map(_function, _list(body.get("tools"))) if found is not None]
    choice = body.get("tool_choice", "auto")
    if not functions or choice == "none":
        return None
    if isinstance(choice, dict) and (named := _function(choice)) is not None:
        found = [each for each in functions if each[0] == named[0]]
        if not found:
            raise RowError(
                f"Tool choice 'function' not found in 'tools' parameter: {named[0]}.", status=400, param="tool_choice"
            )
        return (*found[0], True)
    if choice != "required" and _is_answered(body):
        return None
    return (*functions[int(digest[:8], 16) % len(functions)], False)


def _function(tool: Any) -> tuple[str, Any] | None:
    """A function's name and parameters, nested as in chat completions or flat as in responses."""
    inner = tool.get("function", tool) if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        return None
    parameters = inner.get("parameters")
    return inner["name"], parameters if isinstance(parameters, dict) else {"type": "object"}


def _is_answered(body: dict[str, Any]) -> bool:
    """Whether the conversation ends with what a tool returned."""
    messages = _list(body.get("messages", body.get("input")))
    last = messages[-1] if messages else None
    return isinstance(last, dict) and (last.get("role") == "tool" or last.get("type") == "function_call_output")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
