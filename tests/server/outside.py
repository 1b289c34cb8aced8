"""Other people's clients, installed by name into a cache beside the tests, never into the environment that runs them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

INSTALL_S = 300


def cache_of(config: pytest.Config, name: str) -> Path:
    """A folder that outlives the run. Skips where pytest has no cache."""
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is None:
        pytest.skip("there is no cache to install into (-p no:cacheprovider)")
    return cache.mkdir(name)


def cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, as `build` made it, once: whole or not at all. Skips the test that asked for it where it can't be had."""
    if folder.exists():
        return folder
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        build(part)
        part.rename(folder)
    except (OSError, subprocess.SubprocessError) as error:
        if not folder.exists():  # another run may have been quicker
            pytest.skip(f"{folder.name} can't be installed here: {_reason(error)}")
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
    lines = [line for line in str(said if said is not None else error).split("\n") if line.strip()]
    told = [line for line in lines if "error" in line.lower()]
    return (told if told else [*lines, type(error).__name__])[0][:300]


def python_with(cache: Path, name: str, *requirements: str) -> Path:
    """An interpreter with these packages, in a virtual environment of its own."""

    def build(part: Path) -> None:
        ran([sys.executable, "-m", "venv", "--without-pip", str(part)])
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(part / "bin" / "python")]
        ran(
            [
                *pip,
                "install",
                "--quiet",
                "--no-input",
                "--no-compile",
                "--retries",
                "1",
                "--timeout",
                "15",
                *requirements,
            ]
        )

    return cached(cache / name, build) / "bin" / "python"


def node_with(cache: Path, name: str, requirement: str) -> Path:
    """A folder whose `node_modules` has this package. Skips where there is no node or no npm."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")

    def build(part: Path) -> None:
        (part / "package.json").write_text('{"private": true, "type": "module"}\n')
        flags = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--fetch-retries=1"]
        ran(["npm", "install", *flags, requirement], part)

    return cached(cache / name, build)


def ran(
    command: list[str], cwd: Path | None = None, within_s: float = INSTALL_S, env: Mapping[str, str] | None = None
) -> str:
    """What a command said. Raises `SubprocessError` where it failed, with what it said on stderr."""
    more = {} if env is None else env
    done = subprocess.run(
        command, cwd=cwd, timeout=within_s, check=True, capture_output=True, text=True, env={**os.environ, **more}
    )
    return done.stdout
