"""Calling commands: in this process for words and codes, as a process of its own for signals, streams and imports."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.testing import CliRunner, Result

CLEAN = {name: None for name in os.environ if name.startswith(("STREAMBATCH_", "OPENAI_"))}


def call(command: click.Command, args: Sequence[str], *, env: dict[str, str] | None = None) -> Result:
    """A command in this process, with none of our variables but `env`."""
    return CliRunner().invoke(command, list(args), env={**CLEAN, **(env or {})})


def environment(**more: str) -> dict[str, str]:
    """The environment of a process, with none of our variables but `more`."""
    return {name: text for name, text in os.environ.items() if name not in CLEAN} | more


def process(args: Sequence[str], cwd: Path, *, timeout: float = 60, **env: str) -> "subprocess.CompletedProcess[str]":
    """`streambatch ARGS` as a process, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "streambatch", *args],
        cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
