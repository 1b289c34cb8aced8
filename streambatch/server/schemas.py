"""A value that fits a JSON schema, made from a seed and a text: always the same for the same ones. Pure.

Honours what structured outputs use: types, properties, items, enum, const, anyOf, allOf, $ref, bounds, lengths, formats;
not `pattern`.
"""

import math
from typing import Any

from xxhash import xxh3_64_intdigest

DEEP = 6  # from here on only what must be there: recursive schemas end
MOST_NODES = 2_000
TRIES = 50
MOST_COUNTED, LARGEST = 10_000, 1e12
FORMATS = {
    "date-time": "2025-01-{day:02d}T12:{n:02d}:00Z", "date": "2025-01-{day:02d}", "time": "12:{n:02d}:00Z", "duration": "PT{n}M",
    "email": "user{n}@example.com", "hostname": "host{n}.example.com", "ipv4": "192.0.2.{n}", "ipv6": "2001:db8::{n}",
    "uuid": "00000000-0000-4000-8000-{n:012d}", "uri": "https://example.com/{n}",
}  # fmt: skip


class Fitting:
    """One value. `text` stands in every string that may be anything."""

    def __init__(self, root: Any, seed: str, text: str) -> None:
        self._root, self._seed, self._text = root, seed, text
        self._drawn = self._texts = self._nodes = 0

    def value(self) -> Any:
        return self._fit(self._root, 0)

    def _draw(self, below: int) -> int:
        self._drawn += 1
        return xxh3_64_intdigest(f"{self._seed} {self._drawn}".encode()) % below

    def _fit(self, schema: Any, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MOST_NODES or depth > 4 * DEEP or not isinstance(schema, dict):
            return None if schema is not True else self._text
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][self._draw(len(schema["enum"]))]
        for either in ("anyOf", "oneOf"):
            if isinstance(schema.get(either), list) and schema[either]:
                return self._fit(self._one_of(schema[either], depth), depth + 1)
        return self._by_type(schema, depth)

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema with what it refers to, and all that it must be besides, in one."""
        for _ in range(TRIES):
            if not isinstance(reference := schema.get("$ref"), str):
                break
            target = self._find(reference)
            schema = {
                **(target if isinstance(target, dict) else {}),
                **{k: v for k, v in schema.items() if k != "$ref"},
            }
        parts = schema.get("allOf")
        for part in parts if isinstance(parts, list) else []:
            part = self._resolved(part) if isinstance(part, dict) else {}
            properties = {**_dict(schema.get("properties")), **_dict(part.get("properties"))}
            required = [*_list(schema.get("required")), *_list(part.get("required"))]
            schema = {**schema, **part, "properties": properties, "required": required}
        return schema

    def _find(self, reference: str) -> Any:
        found = self._root
        for name in reference.removeprefix("#").split("/")[1:]:
            found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        return found

    def _one_of(self, choices: list[Any], depth: int) -> Any:
        plain = [
            each for each in choices if isinstance(each, dict) and "$ref" not in each and each.get("type") != "object"
        ]
        if depth >= DEEP and plain:
            return plain[0]
        return choices[self._draw(len(choices))]

    def _by_type(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = "null" if depth >= DEEP and "null" in kind else kind[0] if kind else None
        if not isinstance(kind, str):
            kind = next(
                (kind for mark, kind in (("properties", "object"), ("items", "array")) if schema.get(mark)), "string"
            )
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind in ("integer", "number"):
            return self._number(schema, kind == "integer")
        return {"boolean": lambda: bool(self._draw(2)), "null": lambda: None}.get(kind, lambda: self._string(schema))()

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties, required = _dict(schema.get("properties")), _list(schema.get("required"))
        wanted = [name for name in properties if depth < DEEP or name in required]
        return {name: self._fit(properties[name], depth + 1) for name in wanted}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        made = [self._fit(each, depth + 1) for each in _list(schema.get("prefixItems"))]
        least, most = _count(schema.get("minItems"), 0), _count(schema.get("maxItems"), MOST_COUNTED)
        wanted = max(least, min(most, 0 if depth >= DEEP else 1 + self._draw(3)))
        items = schema.get("items", True)
        for _ in range(TRIES + wanted):
            if len(made) >= wanted or items is False:
                break
            value = self._fit(items, depth + 1)
            if not schema.get("uniqueItems") or value not in made:
                made.append(value)
        return made

    def _number(self, schema: dict[str, Any], whole: bool) -> float | int:
        least = max(_number(schema.get("minimum"), -math.inf), _number(schema.get("exclusiveMinimum"), -math.inf))
        most = min(_number(schema.get("maximum"), math.inf), _number(schema.get("exclusiveMaximum"), math.inf))
        step = _number(schema.get("multipleOf"), 1 if whole or math.inf in (-least, most) or most - least >= 2 else 0)
        if step < 1 / LARGEST:
            least, most = (0 if abs(bound) == math.inf else bound for bound in (least, most))
            return least + (most - least) * (1 + self._draw(998)) / 1000
        first = math.ceil(least / step) if least > -math.inf else math.floor(most / step) - 10 if most < math.inf else 0
        first += 1 if first * step == schema.get("exclusiveMinimum") else 0
        last = math.floor(most / step) if most < math.inf else first + 100
        last -= 1 if last * step == schema.get("exclusiveMaximum") else 0
        value = (first + self._draw(min(max(1, last - first + 1), 1000))) * step
        return int(value) if whole else value

    def _string(self, schema: dict[str, Any]) -> str:
        if isinstance(form := schema.get("format"), str) and form in FORMATS:
            n = self._draw(59)
            return FORMATS[form].format(n=n, day=n % 28 + 1)
        self._texts += 1
        text = self._text if self._texts == 1 else f"{self._text} {self._texts}"
        least, most = _count(schema.get("minLength"), 0), _count(schema.get("maxLength"), MOST_COUNTED)
        while len(text) < least:
            text += f" {self._text}"
        return text[: max(least, min(most, len(text)))]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any, default: float) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain and abs(value) <= LARGEST else default


def _count(value: Any, default: int) -> int:
    return min(value, MOST_COUNTED) if isinstance(value, int) and value >= 0 else default
