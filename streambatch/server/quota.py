"""How often a call may be made in a span of time: a sliding window over the times of the last ones, in memory that it bounds."""

import time
from collections import deque
from collections.abc import Iterable


class Quota:
    """At most `most` (None: any number) in every `span_s` seconds. Times are unix seconds; used by one thread."""

    def __init__(self, most: int | None, span_s: float) -> None:
        self.span_s = span_s
        self._most = most
        self._times: deque[float] = deque(maxlen=most)

    def remember(self, times: Iterable[float]) -> None:
        """What an earlier process let through, oldest first."""
        if self._most is not None:
            self._times.extend(times)

    def wait_s(self) -> float:
        """Seconds until another may come; 0 if it may now."""
        if self._most is None or len(self._times) < self._most:
            return 0.0
        return max(0.0, self._times[0] + self.span_s - time.time()) if self._times else self.span_s

    def count(self) -> None:
        """One came."""
        if self._most is not None:
            self._times.append(time.time())
