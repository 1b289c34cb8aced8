"""What a type checker sees of the library: held to `mypy --strict` by a test, which also takes the `type: ignore`s away.

Each ignored line is a mistake that must be found; nothing here is run.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Unpack, assert_type

import streambatch
from streambatch.testing import LocalServer, local_server


async def awaited(service: streambatch.Service) -> None:
    summary = await streambatch.run("in.jsonl", "out.jsonl", model="m", prompt="{{ x }}", service=service)
    assert_type(summary, streambatch.Summary)
    assert_type(summary.exit_code, int)
    assert_type(summary.next_command, str | None)
    assert_type(summary.usage.output_tokens, int)
    assert_type(summary.to_dict(), dict[str, Any])
    assert_type(await streambatch.preview("in.jsonl", 2, model="m"), list[bytes])
    assert_type(await streambatch.cancel("out.jsonl", service=service), streambatch.Summary)
    receipt = await streambatch.purge("out.jsonl", dry_run=True, service=service)
    assert_type(receipt, streambatch.Receipt)
    assert_type(receipt.files, tuple[streambatch.PurgedFile, ...])
    found = await streambatch.check(service=service, model="m")
    assert_type(found, streambatch.Checks)
    assert_type(found.checks, tuple[streambatch.Check, ...])
    assert_type(found.ok, bool)
    assert_type(streambatch.watch("out.jsonl"), AsyncIterator[streambatch.Status])
    summary.rows = 3  # type: ignore[misc]


def twins() -> None:
    assert_type(streambatch.run_sync("in.jsonl", "out.jsonl"), streambatch.Summary)
    assert_type(streambatch.preview_sync(["a.jsonl", "b.jsonl"]), list[bytes])
    assert_type(streambatch.cancel_sync("out.jsonl"), streambatch.Summary)
    assert_type(streambatch.check_sync(local=True), streambatch.Checks)
    assert_type(streambatch.purge_sync("out.jsonl", local=True), streambatch.Receipt)
    assert_type(streambatch.watch_sync("out.jsonl"), Iterator[streambatch.Status])


def looks() -> None:
    status = streambatch.status("out.jsonl")
    assert_type(status.state, str)
    assert_type(status.progress, streambatch.Progress)
    assert_type(status.progress.eta_s, float | None)
    for outcome in streambatch.peek("out.jsonl", 3):
        assert_type(outcome, streambatch.Outcome)
        assert_type(outcome.ordinal, int | None)
        assert_type(outcome.row, dict[str, Any] | None)
        assert_type(outcome.text, str | None)
        assert_type(outcome.error, str | None)
        assert_type(outcome.ok, bool)
        assert_type(outcome.raw, bytes)
        outcome.answer  # type: ignore[attr-defined]  # noqa: B018


def options_that_are_none() -> None:
    streambatch.run_sync("in.jsonl", "out.jsonl", max_batchs=8)  # type: ignore[call-arg]
    streambatch.run_sync("in.jsonl", "out.jsonl", max_batches="many")  # type: ignore[arg-type]
    streambatch.run_sync("in.jsonl", "out.jsonl", null="never")  # type: ignore[arg-type]
    streambatch.run_sync("in.jsonl", "out.jsonl", json=True)  # type: ignore[call-arg]
    streambatch.preview_sync("in.jsonl", max_batches=8)  # type: ignore[call-arg]
    streambatch.cancel_sync("out.jsonl", model="m")  # type: ignore[call-arg]
    streambatch.check_sync(prompt="x")  # type: ignore[call-arg]
    streambatch.Service("https://x.example/v1")  # type: ignore[call-arg]
    streambatch.run_sync("in.jsonl")  # type: ignore[call-arg]
    streambatch.nothing()  # type: ignore[attr-defined]


def passed_on(source: str, **options: Unpack[streambatch.RunOptions]) -> streambatch.Summary:
    return streambatch.run_sync(source, f"{source}.answers", **options)


def made_before(options: streambatch.RunOptions, shape: streambatch.ShapeOptions) -> None:
    passed_on("in.jsonl", **options)
    streambatch.preview_sync("in.jsonl", **shape)
    options["max_bytes"] = "64MiB"
    options["param"] = {"temperature": 0.2}
    options["stop_after"] = 3600
    options["max_byte"] = 3  # type: ignore[typeddict-unknown-key]


def keys() -> None:
    async def later() -> str:
        return "key"

    streambatch.Service(api_key=later, headers={"X-Team": "a"}, ca_bundle="ca.pem")
    streambatch.Service(api_key=lambda: "key")
    streambatch.Service(api_key=3)  # type: ignore[arg-type]


def errors(error: streambatch.StreambatchError) -> None:
    assert_type(error.exit_code, int)
    if isinstance(error, streambatch.ApiError):
        assert_type(error.status, int | None)
    if isinstance(error, streambatch.SourceError):
        assert_type(error.line, int | None)


def heard(listen: Callable[[object], None]) -> None:
    streambatch.run_sync("in.jsonl", "out.jsonl", on_event=listen)
    streambatch.run_sync("in.jsonl", "out.jsonl", on_event=len)  # type: ignore[arg-type]


def tested(streambatch_server: LocalServer) -> None:
    assert_type(streambatch_server.url, str)
    assert_type(streambatch_server.ledger(), dict[str, int])
    with local_server(answer=lambda body: str(body["model"]), faults={"http": []}, seed=3) as server:
        assert_type(server, LocalServer)
    with local_server(answers=len):  # type: ignore[call-arg]
        """Not reached."""
