"""Seeded data of a given size, made once: request lines, plain rows, and results shuffled inside files of 50,000.

Streams: what it holds does not depend on the number of rows. Says with each set what a right output hashes to.
"""

import json
import os
import random
import string
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import xxhash

FORMAT = 1  # part of every name: data of another form is made anew
RESULTS_IN_FILE = 50_000
TEXT_CHARACTERS = (420, 1190)  # a request line is then about 1 KB
AWKWARD = '\u2028\u0085 é 漢 "quoted" \\ and\na new line'
AWKWARD_EVERY = 97
STRIDE = 7919  # a prime: ids come out of numeric order
ANSWER_CHARACTERS = 400


class Made(msgspec.Struct, frozen=True):
    """A set of files. `digest` is the xxh3-128 of all lines in the order of the input."""

    paths: tuple[str, ...]
    rows: int
    bytes: int
    digest: str


def requests(folder: Path, rows: int, seed: int) -> Made:
    """Ready-made request lines of about 1 KB in one file."""
    return _once(folder, f"requests-{rows}-{seed}", lambda stem: _one_file(stem, _request_lines(rows, seed)))


def plain_rows(folder: Path, rows: int, seed: int) -> Made:
    """Rows of about 1 KB with a `name` and a `text`, for a prompt, in one file."""
    return _once(folder, f"rows-{rows}-{seed}", lambda stem: _one_file(stem, _plain_lines(rows, seed)))


def results(folder: Path, rows: int, seed: int) -> Made:
    """The results of `requests`, in files of 50,000 neighbours in no order."""
    return _once(folder, f"results-{rows}-{seed}", lambda stem: _shuffled(stem, _result_lines(rows, seed), seed))


def warm(made: Made) -> None:
    """Read the files once, so that no contender pays for the disk."""
    for path in made.paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


# -- lines


def conversations(rows: int, seed: int) -> Iterator[tuple[str, str]]:
    """Id and text of each row."""
    chance = random.Random(seed)
    words = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 10))) for _ in range(5000)]
    source = " ".join(chance.choices(words, k=200_000))
    least, most = TEXT_CHARACTERS
    for row in range(rows):
        start = int(chance.random() * (len(source) - most))
        text = source[start : start + least + int(chance.random() * (most - least))]
        yield f"row-{(row * STRIDE) % rows:09d}-{row}", text + AWKWARD if row % AWKWARD_EVERY == 0 else text


def _request_lines(rows: int, seed: int) -> Iterator[bytes]:
    for row, (name, text) in enumerate(conversations(rows, seed)):
        yield (
            f'{{"custom_id": "{name}", "method": "POST", "url": "/v1/chat/completions", "body": {{"model": "gpt-4o-mini",'
            f' "messages": [{{"role": "user", "content": {_quoted(text, row)}}}], "max_tokens": 32}}}}\n'
        ).encode()


def _plain_lines(rows: int, seed: int) -> Iterator[bytes]:
    for row, (name, text) in enumerate(conversations(rows, seed)):
        yield f'{{"name": "{name}", "text": {_quoted(text, row)}, "number": {row}}}\n'.encode()


def _result_lines(rows: int, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed + 1)
    for row, (name, text) in enumerate(conversations(rows, seed)):
        yield (
            f'{{"id": "batch_req_{chance.getrandbits(128):032x}", "custom_id": "{name}", "response": {{"status_code": 200,'
            f' "request_id": "{chance.getrandbits(128):032x}", "body": {{"id": "chatcmpl-{chance.getrandbits(64):x}",'
            f' "object": "chat.completion", "model": "gpt-4o-mini", "choices": [{{"index": 0, "message": {{"role":'
            f' "assistant", "content": {_quoted(text[-ANSWER_CHARACTERS:], row)}}}, "finish_reason": "stop"}}], "usage":'
            f' {{"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}}}}}}, "error": null}}\n'
        ).encode()


def _quoted(text: str, row: int) -> str:
    return json.dumps(text, ensure_ascii=row % 2 == 0)


# -- files


def _once(folder: Path, name: str, make: Callable[[Path], Made]) -> Made:
    """What the record beside the files says, or make them; without its record a set is unfinished and made again."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}-v{FORMAT}"
    record = folder / f"{stem.name}.json"
    if record.exists():
        made = msgspec.json.decode(record.read_bytes(), type=Made)
        if all(os.path.exists(path) for path in made.paths):
            return made
    made = make(stem)
    part = record.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(made))
    part.rename(record)
    return made


def _one_file(stem: Path, lines: Iterable[bytes]) -> Made:
    path = stem.with_suffix(".jsonl")
    digest, rows = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=1 << 20) as file:
        for line in lines:
            digest.update(line)
            file.write(line)
            rows += 1
    return Made((str(path),), rows, path.stat().st_size, digest.hexdigest())


def _shuffled(stem: Path, lines: Iterator[bytes], seed: int) -> Made:
    stem.mkdir(exist_ok=True)
    chance, digest = random.Random(seed), xxhash.xxh3_128()
    paths: list[str] = []
    rows, size = 0, 0
    while group := list(islice(lines, RESULTS_IN_FILE)):
        for line in group:
            digest.update(line)
        chance.shuffle(group)
        path = stem / f"{len(paths):04d}.jsonl"
        with path.open("wb") as file:
            file.writelines(group)
        paths.append(str(path))
        rows, size = rows + len(group), size + path.stat().st_size
    return Made(tuple(paths), rows, size, digest.hexdigest())
