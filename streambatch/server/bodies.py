"""The bodies of answers, endpoint by endpoint, where the quick way of chat completions does not apply. Pure."""

import base64
import json
import math
import struct
from collections.abc import Callable
from typing import Any

from xxhash import xxh3_64_digest

from streambatch.server.rowerrors import RowError
from streambatch.server.wanted import Call, said_in_form

CREATED = 1735689600  # a constant, so that answers repeat
MAX_CHOICES, MAX_INPUTS = 128, 2048
EMBEDDING_DIMENSIONS, MAX_DIMENSIONS = 8, 4096


EMPTY_MESSAGES = RowError(
    "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
    status=400, code="empty_array", param="messages",
)  # fmt: skip

NO_INPUT = RowError(
    "Missing required parameter: 'input'.", status=400, code="missing_required_parameter", param="input"
)
NO_BACKGROUND = RowError(
    "Background mode is not supported in the Batch API.", status=400, code="unsupported_value", param="background"
)


def asked(body: dict[str, Any]) -> str:
    """The text that an answer's digest is of: the last user message, or the input or prompt."""
    if isinstance(messages := body.get("messages", body.get("input")), list):
        users = [m for m in messages if isinstance(m, dict) and m.get("role", "user") == "user"]
        if users:
            return _text(users[-1].get("content"))
    return _text(body.get("input", body.get("prompt", "")))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text(part.get("text", "")) if isinstance(part, dict) else _text(part) for part in content)
    return ""


def _tokens(text: str) -> int:
    return len(text) // 4 + 1


def _chat(digest: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise EMPTY_MESSAGES
    many = body.get("n")
    said = said_in_form(digest, body, text)
    choices = [
        _choice(digest, n, said) for n in range(many if isinstance(many, int) and 0 < many <= MAX_CHOICES else 1)
    ]
    read, written = _tokens(asked(body)), _tokens(_written(said)) * len(choices)
    return {
        "id": f"chatcmpl-{digest[3:]}", "object": "chat.completion", "created": CREATED, "model": body.get("model"),
        "choices": choices,
        "usage": {
            "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default", "system_fingerprint": "fp_streambatch",
    }  # fmt: skip


def _choice(digest: str, index: int, said: str | Call) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None, "annotations": []}
    reason = "stop"
    if isinstance(said, Call):
        function = {"name": said.name, "arguments": said.arguments}
        message["content"] = None
        message["tool_calls"] = [{"id": f"call_{digest[index % 8 :][:24]}", "type": "function", "function": function}]
        reason = "stop" if said.forced else "tool_calls"
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def _written(said: str | Call) -> str:
    return said.arguments if isinstance(said, Call) else said


def _completion(digest: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    read, written = _tokens(asked(body)), _tokens(text)
    return {
        "id": f"cmpl-{digest[3:]}", "object": "text_completion", "created": CREATED, "model": body.get("model"),
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }  # fmt: skip


def _response(digest: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    if body.get("background"):
        raise NO_BACKGROUND
    if body.get("input") is None and body.get("prompt") is None:
        raise NO_INPUT
    said = said_in_form(digest, body, text)
    read, written = _tokens(asked(body)), _tokens(_written(said))
    usage = {
        "input_tokens": read, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": read + written,
    }  # fmt: skip
    return {
        "id": f"resp_{digest}", "object": "response", "created_at": CREATED, "status": "completed",
        "background": False, "error": None,
        "incomplete_details": None, "instructions": body.get("instructions"), "max_output_tokens": body.get("max_output_tokens"),
        "model": body.get("model"), "output": [_item(digest, said)],
        "parallel_tool_calls": True, "previous_response_id": None, "store": True, "temperature": 1.0,
        "tool_choice": body.get("tool_choice", "auto"), "tools": body.get("tools", []), "top_p": 1.0, "truncation": "disabled",
        "usage": usage, "metadata": {},
    }  # fmt: skip


def _item(digest: str, said: str | Call) -> dict[str, Any]:
    """The one item of a response's output."""
    if isinstance(said, Call):
        call_id = f"call_{digest[:24]}"
        return {
            "id": f"fc_{digest}", "type": "function_call", "status": "completed", "name": said.name, "call_id": call_id,
            "arguments": said.arguments,
        }  # fmt: skip
    content = [{"type": "output_text", "annotations": [], "logprobs": [], "text": said}]
    return {"id": f"msg_{digest}", "type": "message", "status": "completed", "content": content, "role": "assistant"}


def _inputs(body: dict[str, Any]) -> list[Any]:
    given = body.get("input")
    one = isinstance(given, list) and bool(given) and isinstance(given[0], int | dict)  # tokens, or parts of one input
    inputs = given if isinstance(given, list) and not one else [given]
    if len(inputs) > MAX_INPUTS:
        told = f"'$.input' is invalid: an array of at most {MAX_INPUTS} inputs was expected, but got {len(inputs)}."
        raise RowError(told, status=400, param="input")
    if not inputs or inputs[0] in (None, "", []):
        raise RowError("'$.input' is invalid: an input must not be empty.", status=400, param="input")
    return inputs


def _embeddings(digest: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    size = body.get("dimensions")
    size = size if isinstance(size, int) and 0 < size <= MAX_DIMENSIONS else EMBEDDING_DIMENSIONS
    inputs = _inputs(body)
    vectors = [_vector(item, size, body.get("encoding_format")) for item in inputs]
    read = sum(len(item) if isinstance(item, list) else _tokens(str(item)) for item in inputs)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        "model": body.get("model"), "usage": {"prompt_tokens": read, "total_tokens": read},
    }  # fmt: skip


def _vector(item: Any, size: int, encoding: Any) -> list[float] | str:
    """A unit vector that is a function of the input's text."""
    seed = json.dumps(item).encode()
    raw = b"".join(xxh3_64_digest(seed, n) for n in range((size + 3) // 4))
    numbers = [n / 32768 for n in struct.unpack(f"<{len(raw) // 2}h", raw)[:size]]
    length = math.sqrt(sum(n * n for n in numbers)) or 1.0
    unit = [n / length for n in numbers]
    return (
        base64.b64encode(struct.pack(f"<{size}f", *unit)).decode()
        if encoding == "base64"
        else [round(n, 8) for n in unit]
    )


CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


def _moderation(digest: str, body: dict[str, Any], text: str) -> dict[str, Any]:
    results = []
    for item in _inputs(body):
        noise = xxh3_64_digest(json.dumps(item).encode()) * 2
        scores = {name: round(noise[i] / 25600, 6) for i, name in enumerate(CATEGORIES)}
        kinds = {name: ["text"] for name in CATEGORIES}
        results.append(
            {
                "flagged": False,
                "categories": dict.fromkeys(CATEGORIES, False),
                "category_scores": scores,
                "category_applied_input_types": kinds,
            }
        )
    return {"id": f"modr-{digest}", "model": body.get("model", "omni-moderation-latest"), "results": results}


BODIES: dict[str, Callable[[str, dict[str, Any], str], dict[str, Any]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/embeddings": _embeddings,
    "/v1/moderations": _moderation,
}
