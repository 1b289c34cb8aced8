"""What becomes of rows: results gathered into a chunk, and the ways in which a script makes a row go wrong."""

import json
from collections.abc import Callable
from typing import Any

from streambatch.server import rules
from streambatch.server.answers import Answer, failed
from streambatch.server.rowerrors import RowError

MESSAGES = {
    400: "Invalid request.",
    429: "Rate limit reached for requests.",
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The engine is currently overloaded, please try again later.",
}


class Chunk:
    """What came of some rows, until it is written."""

    def __init__(self) -> None:
        self.outputs: list[bytes] = []
        self.errors: list[bytes] = []
        self.completed = self.failed = self.lost = 0
        self.input_tokens = self.output_tokens = 0

    def take(self, answer: Answer) -> None:
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        if answer.ok:
            self.completed += 1
            self.outputs.append(answer.line)
        else:
            self.failed += 1
            self.errors.append(answer.line)

    def take_all(self, answers: list[Answer]) -> None:
        good = [answer.line for answer in answers if answer.ok]
        self.outputs += good
        self.errors += [answer.line for answer in answers if not answer.ok]
        self.completed += len(good)
        self.failed += len(answers) - len(good)
        self.input_tokens += sum([answer.input_tokens for answer in answers])
        self.output_tokens += sum([answer.output_tokens for answer in answers])


def _refuse(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    message = rule.message if rule.message is not None else MESSAGES.get(rule.status, MESSAGES[500])
    told = RowError(message, rule.status, rule.code, rule.type, rule.param)
    chunk.take(failed(_digest(answer), custom_id, told))


def _time_out(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    line = _shaped(
        answer, {"response": None, "error": {"code": "request_timeout", "message": "The request timed out."}}
    )
    chunk.take(Answer(line, False, 0, 0))


def _zero(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    chunk.errors.append(_shaped(answer, {"response": {"status_code": 0, "request_id": "", "body": {}}}))


def _lose(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    chunk.take(answer)
    (chunk.outputs if answer.ok else chunk.errors).pop()
    chunk.lost += 1


def _repeat(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    chunk.take(answer)
    (chunk.outputs if answer.ok else chunk.errors).append(answer.line)


def _invent(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    chunk.take(answer)
    chunk.outputs.append(_shaped(answer, {"custom_id": f"unknown-{custom_id}"}))


def _grow(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    row = json.loads(answer.line)
    row["response"]["body"]["padding"] = "x" * rule.bytes
    chunk.take(answer._replace(line=(json.dumps(row) + "\n").encode()))


def _as_text(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    row = json.loads(answer.line)
    row["response"]["body"] = json.dumps(row["response"]["body"])
    del row["error"]
    chunk.take(answer._replace(line=(json.dumps(row) + "\n").encode()))


def _cut(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    at = len(answer.line) // 2 if rule.at is None else rule.at
    chunk.take(answer._replace(line=answer.line[:-1][:at] + b"\n"))


def _answer_wrongly(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    row = json.loads(answer.line)
    row["response"]["body"] = _turned(row["response"]["body"])
    chunk.take(answer._replace(line=(json.dumps(row) + "\n").encode()))


def _turned(value: Any, name: str = "") -> Any:
    """The same with its texts and vectors turned around."""
    if name in ("content", "text", "arguments", "embedding") and isinstance(value, str):
        return value[::-1]
    if name == "embedding" and isinstance(value, list):
        return value[::-1]
    if isinstance(value, list):
        return [_turned(each) for each in value]
    return {key: _turned(each, key) for key, each in value.items()} if isinstance(value, dict) else value


def _lie(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    row = _lied(json.loads(answer.line), rule)
    chunk.take(answer._replace(line=(json.dumps(row) + "\n").encode()))


def _lie_in_body(chunk: Chunk, rule: Any, custom_id: str, answer: Answer) -> None:
    row = json.loads(answer.line)
    row["response"]["body"] = _lied(row["response"]["body"], rule)
    chunk.take(answer._replace(line=(json.dumps(row) + "\n").encode()))


def _lied(fields: dict[str, Any], rule: Any) -> dict[str, Any]:
    return {name: value for name, value in (fields | rule.set).items() if name not in rule.drop}


def _shaped(answer: Answer, change: dict[str, Any]) -> bytes:
    return (json.dumps(json.loads(answer.line) | change) + "\n").encode()


def _digest(answer: Answer) -> str:
    return str(json.loads(answer.line)["id"]).removeprefix("batch_req_")


MISHAPS: dict[type, Callable[[Chunk, Any, str, Answer], None]] = {
    rules.RowAnswer: _refuse,
    rules.RowTimeout: _time_out,
    rules.RowZero: _zero,
    rules.RowLost: _lose,
    rules.RowDuplicate: _repeat,
    rules.RowUnknown: _invent,
    rules.RowHuge: _grow,
    rules.RowBodyText: _as_text,
    rules.RowMalformed: _cut,
    rules.RowWrong: _answer_wrongly,
    rules.RowLine: _lie,
    rules.RowBody: _lie_in_body,
}
