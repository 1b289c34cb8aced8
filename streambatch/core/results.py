"""One result line: whose it is, how it ended, and what it cost. The provider's bytes in, a small value out.

Tolerant of every shape that was seen (missing keys, a body as JSON text, a line cut from its end); knows no files and no shards.
"""

import re

import msgspec

from streambatch.core.heads import complete, pick
from streambatch.core.models import Usage

HEAD_BYTES = 64 << 10  # a line's custom_id and status stand in its first 64 KiB, or it counts as unknown


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What a line says: `status` is None without a response; codes and message as the service wrote them.

    A `malformed` line breaks off or is no JSON: it says whose it is, and nothing else of it counts.
    """

    custom_id: str
    status: int | None
    code: str | None = None
    body_code: str | None = None
    message: str | None = None
    usage: Usage | None = None
    malformed: bool = False


# -- the usual line, by its types


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class TokenCounts(msgspec.Struct, gc=False):
    """`usage` of any endpoint."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Body(msgspec.Struct, gc=False):
    usage: TokenCounts | None = None


class _Response(msgspec.Struct, gc=False):
    status_code: int
    body: _Body | None = None


class UsualLine(msgspec.Struct, gc=False):
    """A line with a response, of the usual types. Whether it is a success is in its status."""

    custom_id: str
    response: _Response


decode_usual = msgspec.json.Decoder(UsualLine).decode
_decode_counts = msgspec.json.Decoder(TokenCounts).decode


def usage_of(counts: TokenCounts) -> Usage:
    """The tokens of one row, whichever names its endpoint uses."""
    details = counts.prompt_tokens_details or counts.input_tokens_details
    return Usage(
        counts.prompt_tokens or counts.input_tokens or 0,
        (details.cached_tokens or 0) if details else 0,
        counts.completion_tokens or counts.output_tokens or 0,
    )


# -- any line


def read_line(line: bytes) -> Verdict | None:
    """What a whole line says; None where nobody can tell whose it is."""
    try:
        tree = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return read_head(line) if complete((line,)) else read_broken(line)
    return _of_tree(tree) if isinstance(tree, dict) else None


def _of_tree(tree: dict[str, object]) -> Verdict | None:
    custom_id = tree.get("custom_id")
    if not isinstance(custom_id, str):
        return None
    response = _mapping(tree.get("response"))
    body = _mapping(response.get("body"))
    top, inner = _mapping(tree.get("error")), _mapping(body.get("error"))
    texts = (inner.get("message"), top.get("message"), tree.get("error"), body.get("error"))
    return Verdict(
        custom_id,
        _status(response),
        _code(top),
        _code(inner),
        next((text for text in texts if isinstance(text, str) and text), None),
        _usage_of_tree(body.get("usage")),
    )


def _mapping(value: object) -> dict[str, object]:
    """An object, also where it came as JSON text; an empty one for anything else."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _status(response: dict[str, object]) -> int | None:
    """The status; 0 for a response without one."""
    status = _number(response.get("status_code"))
    return 0 if status is None and response else status


def _number(value: object) -> int | None:
    """A status, also as a float or as text."""
    if isinstance(value, str) and len(value) <= 9 and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value)
    return None


def _code(error: dict[str, object]) -> str | None:
    code = error.get("code")
    if isinstance(code, int):
        return str(code)
    return code if isinstance(code, str) and code else None


def _usage_of_tree(value: object) -> Usage | None:
    try:
        return usage_of(msgspec.convert(value, TokenCounts)) if isinstance(value, dict) else None
    except msgspec.ValidationError:
        return None


# -- lines too long to hold, or that no decoder takes

_NAMES = {
    (b'"custom_id"',): "custom_id",
    (b'"response"', b'"status_code"'): "status",
    (b'"error"', b'"code"'): "code",
    (b'"error"', b'"message"'): "message",
    (b'"response"', b'"body"', b'"error"', b'"code"'): "body_code",
    (b'"response"', b'"body"', b'"error"', b'"message"'): "message",
}
_USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*(\{[^{}"]*(?:"[^"]*"[^{}"]*|\{[^{}]*\}[^{}"]*)*\})')


def read_head(head: bytes, tail: bytes = b"") -> Verdict | None:
    """What the beginning of a line says, and its end on usage; None without a custom_id."""
    found = pick(head, _NAMES)
    custom_id = found.get("custom_id")
    if not isinstance(custom_id, str):
        return None
    return Verdict(
        custom_id,
        _number(found.get("status")),
        _word(found, "code"),
        _word(found, "body_code"),
        _word(found, "message"),
        _usage_of_tail(tail),
    )


def read_ends(head: bytes, tail: bytes) -> Verdict | None:
    """What a line says that is too long to hold; one that does not begin and end with a brace is malformed."""
    whole = head.lstrip().startswith(b"{") and tail.rstrip().endswith(b"}")
    return read_head(head, tail) if whole else read_broken(head)


def read_broken(head: bytes) -> Verdict | None:
    """Whose a malformed line is; None where its beginning does not tell."""
    custom_id = pick(head, {(b'"custom_id"',): "custom_id"}).get("custom_id")
    return Verdict(custom_id, None, malformed=True) if isinstance(custom_id, str) else None


def _word(found: dict[str, object], name: str) -> str | None:
    value = found.get(name)
    return None if value is None else str(value)


def _usage_of_tail(tail: bytes) -> Usage | None:
    for match in _USAGE.finditer(tail):
        try:
            return usage_of(_decode_counts(match.group(1)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return None
