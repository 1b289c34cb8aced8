"""The public types: a sample of right and wrong uses under `mypy --strict`, and the marker that ships them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SAMPLE = Path(__file__).with_name("typing_sample.py")
IGNORED = re.compile(r"  # type: ignore\[([\w-]+)\]")


def test_the_sample_of_uses(tmp_path: Path) -> None:
    """Without its ignores every line that had one is found, by that error, and nothing else is."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    lines = SAMPLE.read_text(encoding="utf-8").split("\n")
    wrong = {(number, at[1]) for number, line in enumerate(lines, 1) if (at := IGNORED.search(line))}
    bare = tmp_path / "uses.py"
    bare.write_text("\n".join(IGNORED.sub("", line) for line in lines), encoding="utf-8")
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--strict", f"--cache-dir={ROOT / '.mypy_cache'}", str(bare)],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    found = re.findall(r"^uses\.py:(\d+): error: .*\[([\w-]+)\]$", told.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == wrong, told.stdout + told.stderr
    assert len(wrong) >= 15
    assert told.stdout.count(" error: ") == len(found), told.stdout  # none in the package itself


def test_the_types_are_shipped() -> None:
    assert (ROOT / "streambatch" / "py.typed").read_bytes() == b""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["streambatch"]}  # all that is in it
    ignored = subprocess.run(
        ["git", "check-ignore", "streambatch/py.typed"], cwd=ROOT, capture_output=True, timeout=30, check=False
    )
    assert ignored.returncode != 0
