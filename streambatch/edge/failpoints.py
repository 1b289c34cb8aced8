"""Named gaps between the journal and the world, where a test can make the process die, wait or fail.

`STREAMBATCH_FAILPOINT=NAME[:N]=exit|sleep(MS)|raise`, several parted by commas: at the N-th pass (1) through the gap NAME.
Names: `before-EVENT` (the effect happened, the journal does not say so yet) and `after-EVENT`, for every kind of event.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Mapping

import msgspec

from streambatch.errors import ConfigError, StreambatchError

VARIABLE = "STREAMBATCH_FAILPOINT"
EXIT_STATUS = 70
_ENTRY = re.compile(r"(?P<name>[A-Za-z-]+)(:(?P<at>\d+))?=(?P<action>exit|raise|sleep\((?P<ms>\d+)\))")


class Failpoint(msgspec.Struct, frozen=True):
    """What happens at which pass through a gap."""

    name: str
    at: int
    action: str
    ms: int


class Failpoints:
    """The failpoints of one process; none outside tests."""

    def __init__(self, points: tuple[Failpoint, ...] = ()) -> None:
        self._points = points
        self._passes: Counter[str] = Counter()

    def hit(self, name: str) -> None:
        """Pass through a gap. May not return."""
        if not self._points:
            return
        self._passes[name] += 1
        for point in self._points:
            if (point.name, point.at) == (name, self._passes[name]):
                _act(point)


def _act(point: Failpoint) -> None:
    if point.action == "exit":
        os.write(2, f"The failpoint {point.name} was reached.\n".encode())
        os._exit(EXIT_STATUS)
    if point.action == "raise":
        raise StreambatchError(f"The failpoint {point.name} was reached.")
    time.sleep(point.ms / 1000)


def from_environment(environ: Mapping[str, str]) -> Failpoints:
    """Parse the variable. Raises ConfigError."""
    entries = [text for text in environ.get(VARIABLE, "").split(",") if text]
    return Failpoints(tuple(_parse(text) for text in entries))


def _parse(text: str) -> Failpoint:
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise ConfigError(f"{VARIABLE}: {text!r} is not NAME[:N]=exit|sleep(MS)|raise.")
    action = "sleep" if match["ms"] else match["action"]
    return Failpoint(match["name"], int(match["at"] or 1), action, int(match["ms"] or 0))
