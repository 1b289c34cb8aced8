"""Every Python example of the library's page and of the README is run: programs in a process of their own, tests by pytest."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streambatch
from streambatch import testing
from streambatch.testing import LocalServer, local_server

from ..cli.tools import environment

ROOT = Path(__file__).parent.parent.parent
PAGES = ("README.md", "docs/library.md")
QUESTIONS = ["why?", "who?", "what for?"]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def is_a_test(block: str) -> bool:
    return "\ndef test_" in block


PROGRAMS = {page: [block for block in blocks(page) if not is_a_test(block)] for page in PAGES}
TESTS = [block for page in (*PAGES, "docs/server.md") for block in blocks(page) if is_a_test(block)]


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with local_server(answer=lambda body: f"about {body['messages'][-1]['content']}") as running:
        yield running


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run_one_after_the_other(page: str, server: LocalServer, tmp_path: Path) -> None:
    """As a reader would type them: in one folder, names of earlier ones known to later ones."""
    rows = "".join(json.dumps({"question": question}) + "\n" for question in QUESTIONS)
    (tmp_path / "questions.jsonl").write_text(rows, encoding="utf-8")
    code = "\n".join(f"{block}\nprint('END {k}')" for k, block in enumerate(PROGRAMS[page]))
    env = environment(
        OPENAI_BASE_URL=server.url, OPENAI_API_KEY=server.api_key, LLM_URL=server.url, LLM_KEY=server.api_key
    )
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.count("END ") == len(PROGRAMS[page]) > 0
    said = re.split(r"END \d+\n", told.stdout)
    if page == "docs/library.md":
        assert said[0] == f"{len(QUESTIONS)} answers in {tmp_path / 'answers.jsonl'}\n"
        assert [json.loads(line)["body"]["model"] for line in said[1].split("\n")[:-1]] == ["gpt-4o-mini"]
        assert said[4].startswith("finished 3 of 3 rows done, 0 batches in flight\n{'question': 'why?'} -> ")
        assert "ok key Accepted; it comes from the service that was given.\n" in said[6]
        assert sorted(line.split()[:2] for line in said[7].split("\n")[:-1]) == [["0", "when?"], ["1", "where?"]]
        assert f"{len(QUESTIONS)} of {len(QUESTIONS)}\n" in said[8]
        assert said[9].startswith("the data: ")
        assert "about why?" in (tmp_path / "from-llm.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", TESTS, ids=lambda block: re.findall(r"def (test_\w+)", block)[0])
def test_the_tests_of_a_page_pass(block: str, tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(block, encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(tmp_path)]
    told = subprocess.run(
        [*words, "test_example.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "1 passed" in told.stdout


def test_the_fixture_starts_nothing_where_it_is_not_asked_for(tmp_path: Path) -> None:
    """The plugin is in everybody's pytest: it must cost a suite that does not use it next to nothing."""
    (tmp_path / "test_light.py").write_text(
        "import sys\ndef test_it():\n    assert not {'aiohttp', 'streambatch.server', 'msgspec'} & set(sys.modules)\n",
        encoding="utf-8",
    )
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:anyio",
        "--rootdir",
        str(tmp_path),
    ]
    told = subprocess.run(
        [*words, "test_light.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stdout


# -- the page says what is


def signatures(page: str) -> list[tuple[str, str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(
        r"^(?:async )?def (\w+)\((.*)\) -> .*$", text.split("## Functions", 1)[1].split("## ", 1)[0], re.M
    )


def test_the_signatures_of_the_page_are_the_functions() -> None:
    found = signatures("docs/library.md")
    public = {n for n in streambatch.__all__ if inspect.isfunction(getattr(streambatch, n)) and not n.endswith("_sync")}
    assert {name for name, _ in found} == public
    for name, written in found:
        parameters = inspect.signature(getattr(streambatch, name)).parameters.values()
        names = [p.name if p.kind is not p.VAR_KEYWORD else f"**{p.name}" for p in parameters]
        assert [w.split("=")[0].strip() for w in written.split(",") if w.strip() != "*"] == names, name
        defaults = {p.name: repr(p.default) for p in parameters if p.default is not p.empty}
        said = {w.split("=")[0].strip(): w.split("=")[1].replace('"', "'") for w in written.split(",") if "=" in w}
        assert said == defaults, name


def test_the_page_names_every_twin_and_every_helper_for_tests() -> None:
    page = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    assert {name for name in streambatch.__all__ if name.endswith("_sync")} == set(re.findall(r"`(\w+_sync)`", page))
    parameters = inspect.signature(testing.local_server).parameters.values()
    written = ", ".join(f"{p.name}={p.default!r}".replace("'", '"') for p in parameters)
    assert f"`local_server({written})`" in page
