"""Whatever stands in result files: settling and merging end, every row has one outcome, and a sound success gets through whole."""

import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from streambatch.core.jobs import Merge, MergePart, Outcomes, Piece, Settle
from streambatch.core.settling import RECORD, Kind, RowClass
from streambatch.edge.jobs.merge import merge
from streambatch.edge.jobs.settle import settle
from tests.fuzz.bounds import bounded
from tests.fuzz.mutations import deepened, odd_bytes, odd_objects
from tests.merge.rig import Line, encode, failure, success, unanswered, write_ids

IDS = ["0", "1", "row-2", 'quo"te', "back\\slash", "é\u2028\u0085", "漢字", "\ufeff"]
SOURCE = [json.dumps({"text": f"row {n}", "n": n}).encode() for n in range(len(IDS))]


def _as_text(line: Line) -> Line:
    """As one service does it: the body as a text, and no error key."""
    response = {**line["response"], "body": json.dumps(line["response"]["body"])}
    return {"id": line["id"], "custom_id": line["custom_id"], "response": response}


@st.composite
def sound(draw: st.DrawFn) -> Line:
    """A line that some service sends."""
    name = draw(st.sampled_from([*IDS, "nobody's"]))
    text = draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=6)) * draw(st.sampled_from([1, 1, 200]))
    made: Line = draw(
        st.sampled_from(
            [
                success(name, text),
                success(name, text, status=201),
                _as_text(success(name, text)),
                failure(name, 400, message=text),
                failure(name, 429),
                failure(name, 500),
                unanswered(name, "batch_expired"),
                {"custom_id": name, "response": {"status_code": 0, "request_id": "", "body": {}}, "error": None},
            ]
        )
    )
    return made


objects = sound()
good_lines = st.builds(lambda line, plain: encode(line, ascii_only=plain), objects, st.booleans())
odd_lines = st.one_of(
    good_lines.map(deepened),
    odd_bytes(good_lines),
    odd_objects(objects).map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.sampled_from([b"", b" ", b"null", b"[]", b"{}", b'"text"', b'{"custom_id": "0"}']),
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    lines: list[bytes] = draw(st.lists(st.one_of(good_lines, good_lines, odd_lines), max_size=10))
    end: bytes = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
    ended: bool = draw(st.booleans())
    data = end.join(lines) + (end if lines and ended else b"")
    torn: int = draw(st.sampled_from([0, 0, 1]))
    return data[: draw(st.integers(0, len(data)))] if torn else data


def _settled(
    folder: Path, output: bytes | None, error: bytes | None, **sizes: int
) -> tuple[Outcomes, list[Any], Settle]:
    stem = folder / "000000-0"
    write_ids(stem, IDS)
    paths: list[str | None] = []
    for ending, data in ((".output", output), (".error", error)):
        Path(f"{stem}{ending}").write_bytes(b"" if data is None else data)
        paths.append(None if data is None else f"{stem}{ending}")
    spec = Settle(
        stem=str(stem),
        segment=0,
        rows=len(IDS),
        generation=0,
        max_attempts=1,
        output=paths[0],
        error=paths[1],
        fsync=False,
    )
    made = settle(spec, **sizes)
    return made, list(RECORD.iter_unpack(Path(f"{stem}.outcome").read_bytes())), spec


def _check_outcomes(made: Outcomes, found: list[Any], data: list[bytes]) -> None:
    """One outcome a row; what it points at is one line of a result file."""
    assert len(found) == len(IDS)
    kinds = [record[0] for record in found]
    assert (made.done, made.errors, made.left) == (kinds.count(Kind.DONE), kinds.count(Kind.ERROR), ())
    assert made.done + made.errors == len(IDS)
    for kind, row_class, attempts, file, offset, length in found:
        assert (kind == Kind.DONE) == (RowClass(row_class) is RowClass.OK)
        assert attempts == 1
        assert kind != Kind.DONE or (text := data[file][offset : offset + length].strip())[:1] + text[-1:] == b"{}"
        if length:
            text = data[file]
            assert offset == 0 or text[offset - 1 : offset] == b"\n"
            assert text[offset + length : offset + length + 1] in (b"", b"\n")
            assert b"\n" not in text[offset : offset + length]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)


def sound_successes(data: list[bytes]) -> dict[str, list[bytes]]:
    """The lines of each row that are whole successes beyond any doubt."""
    found: dict[str, list[bytes]] = {}
    for line in b"\n".join(data).split(b"\n"):
        try:
            told = json.loads(line.decode(), object_pairs_hook=_once)
            status, choice = told["response"]["status_code"], told["response"]["body"]["choices"][0]
            usual = isinstance(choice["message"]["content"], str) and set(choice["message"]) == {"role", "content"}
            usual = usual and choice["finish_reason"] == "stop"
            if (
                usual
                and type(status) is int
                and 200 <= status < 300
                and set(told) == {"id", "custom_id", "response", "error"}
            ):
                found.setdefault(told["custom_id"], []).append(line)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            continue
    return found


def mentions(data: list[bytes], custom_id: str) -> int:
    """How many lines may be about this row."""
    forms = {json.dumps(custom_id).encode(), json.dumps(custom_id, ensure_ascii=False).encode()}
    return sum(any(form in line for form in forms) for line in b"\n".join(data).split(b"\n"))


def _merged(folder: Path, spec: Settle, emit: str) -> tuple[list[bytes], list[Any]]:
    source = folder / "in.jsonl"
    text = b"\n".join(SOURCE) + b"\n"
    source.write_bytes(text)
    merge(
        Merge(
            segment=0, pieces=(Piece(str(source), "in.jsonl", 0, len(text), 0, 0),), first_ordinal=0, lines=len(SOURCE),
            source_hash=xxhash.xxh3_128(text).hexdigest(), parts=(MergePart(spec.stem, 0, spec.output, spec.error),), bad=None,
            emit=emit, column="answer", endpoint="/v1/chat/completions", id_field=None, out=str(folder / "out"),
            err=str(folder / "err"), rows=len(SOURCE),
        )
    )  # fmt: skip
    out, err = ((folder / name).read_bytes() for name in ("out", "err"))
    assert out[-1:] in (b"", b"\n")
    return out.split(b"\n")[:-1], [json.loads(line) for line in err.split(b"\n")[:-1]]


@bounded(150)
@given(
    output=st.none() | files(),
    error=st.none() | files(),
    block=st.sampled_from([40, 700, 1 << 19]),
    held=st.sampled_from([200, 1 << 20]),
)
def test_any_result_files_settle_and_merge(output: bytes | None, error: bytes | None, block: int, held: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), [b"" if output is None else output, b"" if error is None else error]
        made, found, spec = _settled(folder, output, error, block_bytes=block, held_bytes=held)
        _check_outcomes(made, found, data)
        lines, errors = _merged(folder, spec, "results")
        rows, more = _merged(folder, spec, "rows")
    done = [n for n, record in enumerate(found) if record[0] == Kind.DONE]
    assert len(lines) == len(done)
    assert errors == more
    assert [line["ordinal"] for line in errors] == [n for n in range(len(IDS)) if n not in done]
    assert [json.loads(row)["n"] for row in rows] == list(range(len(IDS)))
    given_out = dict(zip(done, lines, strict=True))
    for custom_id, candidates in sound_successes(data).items():
        if custom_id in IDS:
            row = IDS.index(custom_id)
            assert found[row][0] == Kind.DONE, candidates
            text = candidates[0].decode()
            if len(candidates) == 1 and mentions(data, custom_id) == 1:
                assert given_out[row].rstrip(b"\r") == text.encode().rstrip(b"\r")
                content = json.loads(text)["response"]["body"]["choices"][0]["message"]["content"]
                assert json.loads(rows[row])["answer"] == content


@bounded(60)
@given(order=st.permutations(range(len(IDS))), noise=st.lists(odd_lines, max_size=4), data=st.data())
def test_a_sound_success_gets_through_whatever_stands_around_it(
    order: list[int], noise: list[bytes], data: st.DataObject
) -> None:
    """Noise that names no row of ours, between sound lines in any order."""
    texts = [encode(success(IDS[n], f"answer {n} \u2028 é")) for n in order]
    quiet = [bit for bit in noise if not any(json.dumps(i)[1:-1].encode() in bit or i.encode() in bit for i in IDS)]
    for bit in quiet:
        texts.insert(data.draw(st.integers(0, len(texts))), bit)
    with tempfile.TemporaryDirectory() as name:
        made, _, spec = _settled(Path(name), b"\n".join(texts) + b"\n", None)
        lines, errors = _merged(Path(name), spec, "results")
    assert (made.done, errors) == (len(IDS), [])
    assert lines == [encode(success(i, f"answer {n} \u2028 é")) for n, i in enumerate(IDS)]


def test_memory_does_not_grow_with_the_length_of_lines_or_files(tmp_path: Path) -> None:
    def peak(size: int, lines: int) -> int:
        folder = tmp_path / f"{size}-{lines}"
        folder.mkdir()
        text = b"".join(encode(success(f"nobody-{n}", "x" * size)) + b"\n" for n in range(lines))
        text += b"".join(encode(success(i, "y" * size)) + b"\n" for i in IDS) + encode(
            failure("0", 500, message="z" * size)
        )
        tracemalloc.start()
        made, _, _ = _settled(folder, text, text[:-9])
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (made.done, made.unknown) == (len(IDS), 2 * lines)
        return top - len(text)  # that much is written by the test itself

    few, long, many = peak(1_000, 10), peak(5_000_000, 1), peak(1_000, 5_000)
    assert max(long, many) < few + (6 << 20)
