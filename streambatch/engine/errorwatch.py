"""Watches the share of errors before anything more is bought, and ends the visit where there are too many."""

from streambatch.core import pausing
from streambatch.core.jobs import ErrorKind
from streambatch.core.models import ShardState
from streambatch.edge import lookbacks
from streambatch.edge.journal import Store
from streambatch.engine.context import Visit

UNJUDGED = (ShardState.FINISHED, ShardState.ADMITTED, ShardState.DOWNLOADED)
SHARDS_ASKED = 50  # the newest, for reasons and examples


class ErrorWatch:
    """Looks at the journal's totals: what an earlier visit bought counts too."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    async def unjudged(self) -> int:
        """Batches that have ended and still keep their places, because too little is known without their outcomes."""
        visit = self._visit
        waiting = await visit.journal.read(Store.count, *UNJUDGED)
        done, errors = await self._outcomes()
        return waiting if pausing.watches(done, errors, visit.config.pause_on_errors) else 0

    async def stops(self) -> bool:
        """Whether nothing more may be bought; the visit then ends with a pause."""
        visit = self._visit
        done, errors = await self._outcomes()
        if visit.ended is None and pausing.too_many(done, errors, visit.config.pause_on_errors):
            visit.end("paused", await self._sentence(done, errors), 4, of_errors=True)
        return visit.ended is not None

    async def told(self, message: str) -> tuple[str, str]:
        """The sentence and the command that goes on, once all is collected: `message` where the share is a smaller one by now."""
        config = self._visit.config
        done, errors = await self._outcomes()
        if not pausing.too_many(done, errors, config.pause_on_errors):
            return message, config.command
        return await self._sentence(done, errors), pausing.command_beyond(config.command, done, errors)

    async def _outcomes(self) -> tuple[int, int]:
        totals = await self._visit.journal.read(Store.totals)
        return totals.get("done", 0), totals.get("failed", 0)

    async def _sentence(self, done: int, errors: int) -> str:
        visit = self._visit
        settled = await visit.journal.read(lookbacks.settled_last, SHARDS_ASKED)
        kind = pausing.commonest(event.kinds for event in settled)
        examples = [] if kind is None else await self._examples(kind)
        return pausing.sentence(done, errors, visit.config.pause_on_errors, kind, examples)

    async def _examples(self, kind: ErrorKind) -> list[pausing.Example]:
        visit = self._visit
        examples = []
        for index, row in kind.places:
            found = await visit.journal.read(Store.segment, index)
            if found is not None:
                piece = [p for p in visit.pieces(found.segment) if p.first_row <= row][-1]
                line = piece.first_line + row - piece.first_row + 1
                examples.append(pausing.Example(found.segment.first_ordinal + row, piece.name, line))
        return examples
