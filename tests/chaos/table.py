"""The tables that chaos prints: how often each kind of fault fired and what became of the rows, and where the engine died."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tests.chaos import plan as p
from tests.chaos.life import Life

HEAD = (
    "fault",
    "fired",
    "runs",
    "rows",
    "delivered results bought again",
    "rows lost",
    "possibly billed",
    "failed runs",
)


def table(lives: Sequence[Life], named: Sequence[str]) -> str:
    """Markdown, a line for each of the kinds. The last columns are of the runs that the fault fired in."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    lines += [_line(_cells(kind, lives)) for kind in named]
    return "\n".join([*lines, _line(("**all**", sum(sum(life.fired.values()) for life in lives), *_sums(lives)))])


def gaps(lives: Sequence[Life]) -> str:
    """Markdown: how often the engine died at each failpoint."""
    died = sum((Counter(life.gaps) for life in lives), Counter[str]())
    head = ("the engine died", "before it was journaled", "after")
    kinds = [(kind, died[f"before-{kind}"], died[f"after-{kind}"]) for kind in (*p.USUAL, *p.RARE)]
    return "\n".join(map(_line, (head, ["---"] * len(head), *kinds)))


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
        sum(bool(life.failure) for life in lives),
    )


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in cells)} |"
