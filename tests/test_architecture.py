"""ARCHITECTURE.md's diagram of a shard's life is made from the transition table, and checked against it."""

import sys
from pathlib import Path

from streambatch.core.lifecycle import FINAL, TRANSITIONS, WAITING
from streambatch.core.models import ShardState

PAGE = Path(__file__).parent.parent / "ARCHITECTURE.md"
BEGIN, END = "<!-- diagram: made by `python -m tests.test_architecture`, and checked -->\n", "<!-- end of diagram -->"


def diagram() -> str:
    """The table as a mermaid state diagram: one arrow per pair of states, with the events that take it."""
    arrows: dict[tuple[ShardState, ShardState], list[str]] = {}
    for (state, event), to in TRANSITIONS.items():
        arrows.setdefault((state, to), []).append(event.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {ShardState.SEALED.value}: SegmentSealed, RemainderSealed"]
    lines += [f"    {a.value} --> {b.value}: {', '.join(events)}" for (a, b), events in arrows.items()]
    lines += [f"    {state.value} --> [*]" for state in ShardState if state in FINAL]
    lines += [f"    note right of {state.value}: waits for others" for state in ShardState if state in WAITING]
    return "\n".join(lines)


def with_diagram(page: str) -> str:
    before, rest = page.split(BEGIN, 1)
    return f"{before}{BEGIN}\n```mermaid\n{diagram()}\n```\n\n{END}{rest.split(END, 1)[1]}"


def test_the_page_shows_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_diagram(page), "run python -m tests.test_architecture"


def test_the_diagram_has_every_arrow() -> None:
    text = diagram()
    assert all(
        f"{state.value} --> {to.value}" in text and event.__name__ in text for (state, event), to in TRANSITIONS.items()
    )
    assert all(state.value in text for state in ShardState)


if __name__ == "__main__":
    PAGE.write_text(with_diagram(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
