"""The command lines that are measured, ours and the peers', and the environment they run in."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-bench-0123456789"


def streambatch(*words: str | Path) -> tuple[str, ...]:
    """Our command line, in this interpreter's environment."""
    return (sys.executable, "-m", "streambatch", *map(str, words))


def peer(program: str, *words: str | Path) -> tuple[str, ...]:
    """A program of `benchmarks.peers`."""
    return (sys.executable, "-m", "benchmarks.peers", program, *map(str, words))


def absent(package: str) -> str | None:
    """Why a peer of this package can't take part; None if it can."""
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed (pip install -e '.[bench]')"


@functools.cache
def gnu_split() -> str | None:
    """GNU's split; no other cuts at lines under a number of bytes."""
    for name in ("split", "gsplit"):
        path = shutil.which(name)
        if path is not None and b"GNU" in subprocess.run([path, "--version"], capture_output=True, check=False).stdout:
            return path
    return None


def environment(base_url: str | None = None) -> dict[str, str]:
    """Ours without the settings of the person who measures; for a service at `base_url`, if one is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMBATCH_", "OPENAI_"))}
    service = {} if base_url is None else {"OPENAI_BASE_URL": base_url}
    return kept | {"OPENAI_API_KEY": KEY} | service
