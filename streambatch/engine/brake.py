"""A brake: holds a run back while results that are here wait for somebody to take them.

Knows counts alone; what a unit is (a shard, a segment) is the business of whoever counts.
"""

from collections.abc import Callable


class Brake:
    """Held while `most` units or more wait. `on_release` is called whenever one was taken."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting = 0
        self.on_release: Callable[[], None] = _nobody

    @property
    def held(self) -> bool:
        return self._waiting >= self._most

    def add(self) -> None:
        """One more unit waits."""
        self._waiting += 1

    def take(self) -> None:
        """One unit was taken."""
        self._waiting -= 1
        self.on_release()


def _nobody() -> None:
    """No engine listens yet."""
