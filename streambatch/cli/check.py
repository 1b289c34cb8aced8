"""`streambatch check`: what works from here, a line for each thing."""

from typing import Any

import anyio

from streambatch.cli.flags import takes


@takes("check", short_help="What works from here.")
def check(**values: Any) -> None:
    """Whether address, proxy, certificate, key, batches, files and model work from here. Sends no rows, costs nothing."""
    from streambatch import api, reports
    from streambatch.cli import ending
    from streambatch.core.checks import Check
    from streambatch.core.wording import one_line

    def line(one: Check) -> str:
        return f"{one.state:<8} {one.name:<12} {one_line(one.message)}"

    as_json = values.pop("json", False)
    found = anyio.run(lambda: api.check(**values))
    text = "".join(f"{line(one)}\n" for one in found.checks)
    reports.put_out(reports.document(found) if as_json else text.encode())
    if found.exit_code:
        ending.leave(found.exit_code, found.message)
