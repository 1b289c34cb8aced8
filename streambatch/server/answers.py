"""The built-in answerer: from a request line to its result line, by seed and line alone.

The same line always gets the same bytes, across batches and restarts. A chat answer begins with the xxh3-64 of the last user
message, so that a wrong join shows. Knows no files, batches or scripts.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_hexdigest, xxh3_128_hexdigest

from streambatch.server.bodies import BODIES, CREATED, EMPTY_MESSAGES, MAX_CHOICES, asked
from streambatch.server.rowerrors import RowError
from streambatch.server.words import Ring

quoted = json.encoder.encode_basestring_ascii

CHAT = (
    '{"id": "batch_req_%s", "custom_id": %s, "response": {"status_code": 200, "request_id": "%s", "body": {"id": "chatcmpl-%s", '
    '"object": "chat.completion", "created": %d, "model": %s, "choices": [%s], "usage": {"prompt_tokens": %d, '
    '"completion_tokens": %d, "total_tokens": %d, "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0}, '
    '"completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, '
    '"rejected_prediction_tokens": 0}}, "service_tier": "default", "system_fingerprint": "fp_streambatch"}}, "error": null}\n'
)
CHOICE = (
    '{"index": %d, "message": {"role": "assistant", "content": "%s", "refusal": null, "annotations": []}, '
    '"logprobs": null, "finish_reason": "stop"}'
)
_A, _B, _C, _D, _E, _F, _G, _H, _I, _J, _K = CHAT.replace("%d", "%s").split("%s")
_L, _M, _N = CHOICE.replace("%d", "%s").split("%s")
RESULT = '{"id": "batch_req_%s", "custom_id": %s, "response": %s, "error": %s}\n'
NAME_AT = len(RESULT[: RESULT.index("%s")]) + 32 + len('", "custom_id": ')


class Answer(NamedTuple):
    """A result line, whether it belongs into the output file, and the tokens it used."""

    line: bytes
    ok: bool
    input_tokens: int
    output_tokens: int


class Part(msgspec.Struct):
    type: str = "text"
    text: str = ""


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None


class ChatBody(msgspec.Struct):
    model: str
    messages: list[Message]
    n: int | None = None
    response_format: msgspec.UnsetType | None = msgspec.UNSET  # what is more than null goes the slow way
    tools: msgspec.UnsetType | None = msgspec.UNSET


class ChatLine(msgspec.Struct):
    custom_id: str
    body: ChatBody


class Line(msgspec.Struct):
    custom_id: str
    body: dict[str, Any]


class Answerer:
    """Answers request lines of one endpoint; `own` replaces the built-in text (body -> str, or a whole body, or raises)."""

    def __init__(self, seed: int, own: Callable[[dict[str, Any]], str | dict[str, Any]] | None = None) -> None:
        self._seed = seed & ((1 << 64) - 1)
        self._ring = Ring(seed)
        self._own = own
        self._chat = msgspec.json.Decoder(ChatLine)
        self._any = msgspec.json.Decoder(Line)

    def answer(self, endpoint: str, line: bytes) -> Answer:
        """The result of one request line (without its newline)."""
        digest = xxh3_128_hexdigest(line, self._seed)
        if self._own is not None or endpoint != "/v1/chat/completions":
            return self._slow_answer(endpoint, digest, line)
        try:
            row = self._chat.decode(line)
        except msgspec.ValidationError:  # a shape that the quick way doesn't know
            return self._slow_answer(endpoint, digest, line)
        return self._chat_answer(digest, row)

    def _chat_answer(self, digest: str, row: ChatLine) -> Answer:
        said, size = "", 0
        for message in row.body.messages:
            content = message.content
            if not isinstance(content, str):
                content = "" if content is None else "".join([part.text for part in content])
            size += len(content)
            if message.role == "user":
                said = content
        if not row.body.messages:
            return failed(digest, row.custom_id, EMPTY_MESSAGES)
        read = size // 4 + 4 * len(row.body.messages) + 3
        text = f"{xxh3_64_hexdigest(said.encode())} {self._ring.pick(int(digest[:8], 16))}"
        many = row.body.n
        if many is not None and not 0 < many <= MAX_CHOICES:
            return failed(digest, row.custom_id, BAD_CHOICES)
        written = (8 + len(text) // 5) * (1 if many is None else many)
        choices = _choices(text, 1 if many is None else many)
        line = _chat_line(digest, quoted(row.custom_id), quoted(row.body.model), choices, read, written)
        return Answer(line, True, read, written)

    def _slow_answer(self, endpoint: str, digest: str, line: bytes) -> Answer:
        row = self._any.decode(line)
        try:
            body = self._body(endpoint, digest, row.body)
        except RowError as error:
            return failed(digest, row.custom_id, error)
        read, written = _used(body, "prompt_tokens", "input_tokens"), _used(body, "completion_tokens", "output_tokens")
        return Answer(result(digest, row.custom_id, 200, body), True, read, written)

    def _body(self, endpoint: str, digest: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._own is None:
            text = f"{xxh3_64_hexdigest(asked(body).encode())} {self._ring.pick(int(digest[:8], 16))}"
            return BODIES[endpoint](digest, body, text)
        made = _called(self._own, body)
        return made if isinstance(made, dict) else BODIES[endpoint](digest, body, made)


BAD_CHOICES = RowError(
    f"Invalid 'n': expected an integer from 1 to {MAX_CHOICES}.", status=400, code="invalid_value", param="n"
)


def _called(own: Callable[[dict[str, Any]], str | dict[str, Any]], body: dict[str, Any]) -> str | dict[str, Any]:
    """What the user's callable says; whatever it raises is that row's error. A `status` and a `code` on it are kept."""
    try:
        return own(body)
    except RowError:
        raise
    except Exception as error:  # any failure of the user's code is an answer here, not ours
        status, code = getattr(error, "status", 500), getattr(error, "code", None)
        told = str(error) if str(error) else type(error).__name__
        raise RowError(
            told, status if isinstance(status, int) else 500, code if isinstance(code, str) else None
        ) from error


def _used(body: dict[str, Any], *names: str) -> int:
    """Tokens that a body's usage tells of; a user's own body may tell anything."""
    usage = body.get("usage")
    told = [usage[name] for name in names if isinstance(usage.get(name), int)] if isinstance(usage, dict) else []
    return int(told[0]) if told else 0


# -------------------------------------------------------------------- result lines


def _choices(text: str, many: int) -> str:
    if many == 1:
        return f"{_L}0{_M}{text}{_N}"
    return ", ".join([CHOICE % (i, text if i == 0 else f"{text} {i}") for i in range(many)])


def _chat_line(digest: str, name: str, model: str, choices: str, read: int, written: int) -> bytes:
    """`CHAT` filled in, in the quickest way there is: every row of a benchmark comes through here."""
    head = f"{_A}{digest}{_B}{name}{_C}{digest[16:]}{digest[:16]}{_D}{digest[3:]}{_E}{CREATED}{_F}{model}{_G}"
    return f"{head}{choices}{_H}{read}{_I}{written}{_J}{read + written}{_K}".encode("ascii")


def name_in(line: bytes) -> bytes:
    """The custom_id of a result line of ours, as JSON in ASCII."""
    return line[NAME_AT : line.index(b', "response": ', NAME_AT)]


def result(digest: str, custom_id: str, status: int, body: Any) -> bytes:
    """A result line with a response."""
    response = {"status_code": status, "request_id": digest[16:] + digest[:16], "body": body}
    return (RESULT % (digest, quoted(custom_id), json.dumps(response), "null")).encode("ascii")


def failed(digest: str, custom_id: str, error: RowError) -> Answer:
    """A row that the model's endpoint refused."""
    told = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    return Answer(result(digest, custom_id, error.status, {"error": told}), False, 0, 0)


def unanswered(seed: int, custom_id: str, code: str, message: str) -> bytes:
    """A row that was never executed, or never answered."""
    digest = xxh3_128_hexdigest(f"{code} {custom_id}".encode(), seed & ((1 << 64) - 1))
    error = json.dumps({"code": code, "message": message})
    return (RESULT % (digest, quoted(custom_id), "null", error)).encode("ascii")
