"""Other programs that do the same job, each as a process: `python -m benchmarks.peers NAME REQUESTS RESULTS OUTPUT`.

Merging with polars in two ways, the second the fastest known here, and with DuckDB. Imports nothing of ours.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

ID = r'"custom_id": "((?:[^"\\]|\\.)*)"'


def polars_by_path(requests: str, results: str, output: str) -> None:
    """Polars with the ids by its JSON functions."""
    pl: Any = importlib.import_module("polars")
    wanted = pl.scan_ndjson(requests, schema={"custom_id": pl.String})
    _join(pl, wanted, pl.col("line").str.json_path_match("$.custom_id"), results, output)


def polars_by_regex(requests: str, results: str, output: str) -> None:
    """Polars with the ids by a regular expression on both sides."""
    pl: Any = importlib.import_module("polars")
    key = pl.col("line").str.extract(ID, 1)
    _join(pl, _lines(pl, requests).select(key.alias("custom_id")), key, results, output)


def _join(pl: Any, wanted: Any, key: Any, results: str, output: str) -> None:
    answers = _lines(pl, f"{results}/*.jsonl").with_columns(key.alias("custom_id"))
    ordered = wanted.with_row_index().join(answers, on="custom_id").sort("index").select("line")
    ordered.sink_csv(output, include_header=False, separator="\x01", quote_style="never")


def _lines(pl: Any, path: str) -> Any:
    return pl.scan_csv(path, separator="\x01", has_header=False, quote_char=None, new_columns=["line"])


def duckdb_by_regex(requests: str, results: str, output: str) -> None:
    """DuckDB with the ids by a regular expression on both sides."""
    connection = importlib.import_module("duckdb").connect()
    wanted, answers = (_table(path) for path in (requests, f"{results}/*.jsonl"))
    connection.execute(f"SET temp_directory = '{output}.tmp'")
    connection.execute(
        f"""COPY (
            SELECT line FROM (SELECT row_number() OVER () AS place, regexp_extract(line, '{ID}', 1) AS id FROM {wanted})
            JOIN (SELECT line, regexp_extract(line, '{ID}', 1) AS id FROM {answers}) USING (id) ORDER BY place
        ) TO '{output}' (FORMAT csv, HEADER false, DELIMITER '\x01', QUOTE '')"""
    )


def _table(path: str) -> str:
    return (
        f"read_csv('{path}', columns = {{'line': 'VARCHAR'}}, header = false, auto_detect = false, delim = '\x01',"
        " quote = '', escape = '', max_line_size = 33554432)"
    )


PROGRAMS: dict[str, Callable[[str, str, str], None]] = {
    "polars-json": polars_by_path,
    "polars-regex": polars_by_regex,
    "duckdb-regex": duckdb_by_regex,
}


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
