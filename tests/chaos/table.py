"""The table that chaos prints: how often each kind of fault fired, and what became of the rows."""

from collections.abc import Iterable, Sequence

from tests.chaos import plan as p
from tests.chaos.life import Life

HEAD = ("fault", "fired", "runs", "rows", "delivered results bought again", "rows lost", "possibly billed")


def kinds() -> list[str]:
    """Every kind that a plan can have."""
    found = {rule.kind for seed in range(200) for rule in p.plan(seed).rules}
    first = (p.KILL, p.GAP, *p.TRACED, p.SERVER, p.LOST)
    return [*first, *sorted(found)]


def table(lives: Sequence[Life], named: Sequence[str]) -> str:
    """Markdown. The last three columns are of the runs that the fault fired in."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line(_cells(kind, lives)) for kind in named]
    return "\n".join([*lines, _line(("**all**", sum(sum(life.fired.values()) for life in lives), *_sums(lives)))])


def _cells(kind: str, lives: Sequence[Life]) -> tuple[object, ...]:
    hit = [life for life in lives if life.fired.get(kind, 0)]
    return (kind, sum(life.fired[kind] for life in hit), *_sums(hit))


def _sums(lives: Sequence[Life]) -> tuple[int, ...]:
    return (
        len(lives),
        sum(life.rows for life in lives),
        sum(life.bought_again for life in lives),
        sum(life.rows_lost for life in lives),
        sum(life.possibly_billed for life in lives),
    )


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in cells)} |"
