"""The jobs of the `merge` command, by kind."""

from streambatch.core.joins import (
    CountLines,
    IndexResults,
    IndexRows,
    Joined,
    JoinJob,
    JoinSlice,
    MatchPart,
    WriteChunk,
)
from streambatch.edge.jobs import indexing


def run_join(job: JoinJob) -> Joined:
    """Does the job here and now. Raises SourceError for inputs, OSError for the files it makes."""
    match job:
        case JoinSlice():
            from streambatch.edge.jobs.slicing import join_slice

            return join_slice(job)
        case CountLines():
            return indexing.count_lines(job)
        case IndexRows():
            return indexing.index_rows(job)
        case IndexResults():
            return indexing.index_results(job)
        case MatchPart():
            return indexing.match_part(job)
        case WriteChunk():
            from streambatch.edge.jobs.writing import write_chunk

            return write_chunk(job)
