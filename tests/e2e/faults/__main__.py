"""Run all scenarios and write docs/faults.md: `python -m tests.e2e.faults`."""

import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.e2e.faults.catalogue import SCENARIOS
from tests.e2e.faults.driving import drive, mismatches
from tests.e2e.faults.page import PAGE, page
from tests.e2e.faults.scenario import Scenario


def main(arguments: list[str]) -> int:
    """The number of scenarios that did not end as they say."""
    warnings.simplefilter("error")
    only = arguments[1] if arguments[:1] == ["--only"] and len(arguments) == 2 else None
    chosen = [scenario for name, scenario in SCENARIOS.items() if only is None or only in name]
    wrong = sum(not _holds(scenario) for scenario in chosen)
    if only is None and not wrong:
        PAGE.write_text(page(), encoding="utf-8")
    sys.stderr.write(f"{len(chosen)} scenarios, {wrong} not as they say.\n")
    return 1 if wrong else 0


def _holds(scenario: Scenario) -> bool:
    """Whether a scenario ends as it says; a broken one must not."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streambatch-faults-") as folder:
        try:
            found = mismatches(scenario, drive(scenario, Path(folder)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the others run, and it is told
            found = [f"{type(error).__name__}: {error}"]
    good = bool(found) == (scenario.broken is not None)
    sys.stderr.write(f"{'' if good else 'WRONG '}{scenario.name} ({time.monotonic() - began:.1f} s)\n")
    for line in found if not good else []:
        sys.stderr.write(f"      {line}\n")
    return good


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
