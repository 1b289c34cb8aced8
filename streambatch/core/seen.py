"""Which `custom_id`s a segment has used: every one only once."""


class SeenIds:
    """A set that takes many ids at once for the price of an update, and takes none of them if one repeats."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._order: list[str] = []  # all of them, to undo an update; not kept once that was needed
        self._careful = False

    def add(self, custom_id: str) -> bool:
        """Whether it is new; then it is taken."""
        if custom_id in self._ids:
            return False
        self._ids.add(custom_id)
        self._order.append(custom_id)
        return True

    def add_all(self, ids: list[str]) -> bool:
        """Whether all are new and different; then all are taken, else none."""
        if self._careful:
            return self._add_carefully(ids)
        before = len(self._ids)
        self._ids.update(ids)
        if len(self._ids) == before + len(ids):
            self._order += ids
            return True
        self._ids = set(self._order)
        self._order.clear()
        self._careful = True
        return False

    def _add_carefully(self, ids: list[str]) -> bool:
        fresh = set(ids)
        if len(fresh) < len(ids) or not self._ids.isdisjoint(fresh):
            return False
        self._ids |= fresh
        return True
