"""`make demo`: every function of Python's standard library, described in one sentence by the local batch server, and checked.

Builds the data set, runs the real command line, then holds the output against the input and against the server's ledger.
"""

import ast
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import xxhash

from streambatch.core.models import Shaping
from streambatch.core.rows import Request
from streambatch.core.shaping import make_shaper
from streambatch.testing import local_server

FOLDER = Path(".demo")
ROWS, OUTPUT = FOLDER / "functions.jsonl", FOLDER / "described.jsonl"
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
SOURCE_CHARACTERS = 1500
MODEL = "gpt-4o-mini"
PROMPT = "Describe this Python function in one sentence: {{ module }}, line {{ line }}: {{ source }}"
REQUESTS, BATCHES, AT_ONCE, SPEED = 400, 20, 16, 1
Row = dict[str, Any]


# -- the data set


def build(target: Path) -> int:
    """Write one row per function of the standard library; how many."""
    rows = 0
    with target.open("w", encoding="utf-8", newline="\n") as file:
        for row in functions(Path(sysconfig.get_paths()["stdlib"])):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            rows += 1
    return rows


def functions(root: Path) -> Iterator[Row]:
    """Every function and method below a folder, in the order of names and lines."""
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if SKIPPED.isdisjoint(inside.parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            module = ".".join(inside.with_suffix("").parts)
            yield from _of_tree(_parsed(text), module, text.split("\n"), ())


def _parsed(text: str) -> ast.AST:
    """The file's tree; an empty one for a template or a sample that is no module."""
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(SyntaxError):
        return ast.parse(text)
    return ast.Module(body=[], type_ignores=[])


def _of_tree(node: ast.AST, module: str, lines: list[str], names: tuple[str, ...]) -> Iterator[Row]:
    for child in ast.iter_child_nodes(node):
        inner = names
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = (*names, child.name)
            if not isinstance(child, ast.ClassDef):
                yield _row(child, module, lines, ".".join(inner))
        yield from _of_tree(child, module, lines, inner)


def _row(node: ast.FunctionDef | ast.AsyncFunctionDef, module: str, lines: list[str], name: str) -> Row:
    source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
    docstring = ast.get_docstring(node)
    return {
        "module": module,
        "name": name,
        "line": node.lineno,
        "signature": lines[node.lineno - 1].strip(),
        "docstring": None if docstring is None else docstring.encode(errors="replace").decode(),
        "source": source[:SOURCE_CHARACTERS],
    }


# -- the run


def command() -> list[str]:
    return [
        *("streambatch", "run", str(ROWS), "-o", str(OUTPUT), "--local", "--model", MODEL, "--prompt", PROMPT),
        *(
            "--max-requests",
            str(REQUESTS),
            "--max-batches",
            str(BATCHES),
            "--speed",
            str(SPEED),
            "--poll-interval",
            "0.5",
        ),
    ]


def execute(words: list[str]) -> None:
    """The real command, as a process; its exit code is ours if it fails."""
    print(f"$ {shlex.join(words)}\n", flush=True)
    with subprocess.Popen([sys.executable, "-m", *words]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the command has heard it too, and says itself what it leaves behind
            code = process.wait()
    if code != 0:
        sys.exit(code)


# -- the checks


def check(rows: int) -> list[str]:
    """What is wrong with the output or the ledger, in words; empty if nothing is."""
    told = ledger(FOLDER / "described.jsonl.run" / "local")
    wrong = list(_wrong_rows(rows))
    if told["rows_executed"] != rows or told["rows_executed_again"] != 0:
        wrong.append(
            f"the server executed {told['rows_executed']} rows, {told['rows_executed_again']} of them again, for {rows} rows"
        )
    if told["batches_at_once"] < AT_ONCE:
        wrong.append(f"only {told['batches_at_once']} batches ran at once, {AT_ONCE} were wanted")
    print(
        f"ledger of the server: {told['rows_executed']:,} rows executed, {told['rows_executed_again']} of them again,"
        f" in {told['batches']} batches, {told['batches_at_once']} at once"
    )
    return wrong


def ledger(data: Path) -> dict[str, int]:
    """What the server has executed, by its own account: it is started once more on the state that it left."""
    with local_server(data_dir=data) as server:
        return server.ledger()


def _wrong_rows(rows: int) -> Iterator[str]:
    """Each line of the output must be the input's line, in its place, with the answer to its own prompt."""
    shaper = make_shaper(Shaping(ready_made=False, model=MODEL, prompt=PROMPT, column="answer"))
    count = 0
    with ROWS.open("rb") as source, OUTPUT.open("rb") as output:
        for ordinal, (line, answered) in enumerate(zip_longest(source, output)):
            if line is None or answered is None or not _belongs(shaper.shape(line, ordinal), line, answered):
                yield f"row {ordinal} of the output is not the answer to row {ordinal} of the input"
                return
            count += 1
    if count != rows:
        yield f"{count} rows came out of {rows}"


def _belongs(request: object, line: bytes, answered: bytes) -> bool:
    assert isinstance(request, Request)
    prompt = json.loads(request.line)["body"]["messages"][-1]["content"]
    row, out = json.loads(line), json.loads(answered)
    answer = out.pop("answer")
    error = out.pop("answer_error", None)
    mark = xxhash.xxh3_64_hexdigest(prompt.encode())
    return out == row and error is None and isinstance(answer, str) and answer.startswith(mark)


def show(count: int = 3) -> None:
    """The first answers, as a reader would look at them."""
    print("\nthe first answers:")
    with OUTPUT.open(encoding="utf-8", newline="\n") as file:
        for _, line in zip(range(count), file, strict=False):
            row = json.loads(line)
            print(f"  {row['module']}.{row['name']}, line {row['line']}: {row['answer'][:90]}")


def main() -> None:
    began = time.monotonic()
    resumed = OUTPUT.with_name(f"{OUTPUT.name}.run").exists() and not OUTPUT.exists() and ROWS.exists()
    if not resumed:
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir()
        rows = build(ROWS)
        print(
            f"{ROWS}: {rows:,} functions, {os.path.getsize(ROWS) / 1e6:.1f} MB, in {time.monotonic() - began:.1f} s\n"
        )
    else:
        with ROWS.open("rb") as file:
            rows = sum(1 for _ in file)
        print(f"going on with the run in {OUTPUT}.run\n")
    execute(command())
    print()
    wrong = check(rows)
    show()
    if wrong:
        print("\nNOT RIGHT: " + "; ".join(wrong))
        sys.exit(1)
    seconds = time.monotonic() - began
    print(
        f"\nright: {rows:,} rows in, {rows:,} answers out, in order, each to its own row, each bought once ({seconds:.0f} s)"
    )


if __name__ == "__main__":
    main()
