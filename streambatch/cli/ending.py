"""How a command ends: exit codes, and the one sentence on stderr that goes with each that is not zero.

The only place that turns an exception into words for a terminal.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import click

from streambatch.core.wording import one_line
from streambatch.errors import StreambatchError

INTERRUPTED, BUG = 130, 1
_INTERRUPTED = "Interrupted; nothing more is sent, and the same command goes on."


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """Whatever goes wrong inside ends the process with its exit code and a sentence."""
    try:
        yield
    except SystemExit:
        raise
    except click.exceptions.Exit as stop:
        leave(stop.exit_code)
    except click.ClickException as error:
        leave(2, usage_sentence(error))
    except (KeyboardInterrupt, click.Abort):
        leave(INTERRUPTED, _INTERRUPTED)
    except StreambatchError as error:
        leave(error.exit_code, str(error))
    except BrokenPipeError:
        _close_stdout()
        leave(0)
    except Exception as error:  # noqa: BLE001  the last stop: a bug of ours is said in one sentence, its traceback kept
        leave(BUG, bug_sentence(error))


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    """Ctrl-C inside, where no engine is at work that would have to close its journal."""
    try:
        yield
    except KeyboardInterrupt:
        leave(INTERRUPTED, _INTERRUPTED)


def leave(code: int, sentence: str = "") -> NoReturn:
    """End the process; a sentence goes to stderr."""
    if sentence:
        say(sentence)
    sys.exit(code)


def say(sentence: str) -> None:
    """One line on stderr, without control characters; a stderr that is gone is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):  # closed by whoever reads it
        click.echo(one_line(sentence), err=True)


def usage_sentence(error: click.ClickException) -> str:
    """Click's complaint as one sentence, with the command that explains."""
    said = one_line(error.format_message()).rstrip(".?")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "streambatch"
    return f"{said} (see {path} --help)."


def bug_sentence(error: BaseException, folder: str | None = None) -> str:
    """Keep the traceback of a bug in a file, or else on stderr; the sentence that says where."""
    import traceback

    told = "".join(traceback.format_exception(error))
    path = os.path.join(folder, "bug.txt") if folder is not None and os.path.isdir(folder) else None
    name = f"{type(error).__name__}: {one_line(str(error))[:200]}"
    if path is not None:
        with contextlib.suppress(OSError):  # then it goes to stderr
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write(told)
            return f"This is a bug in streambatch ({name}); the details are in {path}, and the same command resumes."
    with contextlib.suppress(OSError, ValueError):  # stderr may be gone
        sys.stderr.write(told)
    return f"This is a bug in streambatch ({name}); please report what stands above."


def _close_stdout() -> None:
    """The reader of our pipe left: give Python something to flush into, so that its exit says nothing."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
