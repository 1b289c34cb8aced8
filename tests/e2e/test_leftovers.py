"""What is merged leaves the spool, also where a visit ended between the two."""

from pathlib import Path
from typing import Any

import pytest

from streambatch.core import events as e
from streambatch.errors import StreambatchError
from tests.e2e import rig

pytestmark = pytest.mark.anyio


async def test_a_visit_killed_before_it_cleaned_leaves_nothing_behind(tmp_path: Path, server: Any) -> None:
    source = rig.write_requests(tmp_path / "in.jsonl", 20)
    config = rig.config(tmp_path, [source], server.url, server.api_key)

    def die(notice: Any) -> None:
        if isinstance(notice, e.Merged) and notice.segment == 1:
            raise StreambatchError("The process would have died here.")

    with pytest.raises(StreambatchError, match="died here"):
        await rig.run(config, die)
    spool = Path(config.run_dir) / "spool"
    assert list(spool.glob("*.outcome"))
    assert (await rig.run(config)).state == "finished"
    assert list(spool.iterdir()) == []
