"""Starting and ending: the command, the thread, the pytest fixture; what stops a start is said in one sentence."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from streambatch.errors import ConfigError
from streambatch.server.serving import ThreadedServer
from streambatch.server.settings import Settings
from streambatch.testing import LocalServer, local_server
from tests.server.kit import Wire, chat
from tests.server.process import KEY, Process

pytestmark = pytest.mark.process


def refused(*flags: str, **environment: str) -> str:
    """The one sentence that a start ends with."""
    command = [sys.executable, "-m", "streambatch", "serve", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **environment})
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_ends_it_with_exit_0(tmp_path: Path, number: int) -> None:
    with Process(tmp_path) as server:
        url = server.ready.read_text().strip()
        assert server.wire.run(chat(3))["status"] == "completed"
        code, said = server.end(number)
    assert (code, url in said) == (0, True)


def test_a_busy_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in refused("--port", str(port), "--data-dir", str(tmp_path))


def test_a_data_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "data directory" in refused("--data-dir", str(tmp_path / "file" / "data"))
    (tmp_path / "server.sqlite").write_text("this is no database, and long enough to be seen as none" * 100)
    assert "server.sqlite" in refused("--data-dir", str(tmp_path))


def test_two_servers_do_not_share_a_data_directory(tmp_path: Path) -> None:
    with Process(tmp_path):
        assert "in use by another server" in refused("--data-dir", str(tmp_path / "data"))


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    assert "--api-key-env" in refused("--host", "0.0.0.0")
    assert "NO_SUCH_VARIABLE" in refused("--api-key-env", "NO_SUCH_VARIABLE")
    assert "no-such.toml" in refused("--faults", str(tmp_path / "no-such.toml"))


@pytest.mark.parametrize(
    "given",
    [{"speed": 0}, {"port": 70_000}, {"profile": "moon"}, {"tier": "9"}, {"api_key": " "}, {"host": "10.0.0.1"}],
)
def test_settings_are_checked(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Settings(data_dir=tmp_path, **given)  # type: ignore[arg-type]


def test_a_key_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", KEY)
    with Process(tmp_path, "--api-key-env", "OWN_KEY") as server:
        assert server.wire.call("GET", "/v1/models").status == 200
        assert Wire(server.ready.read_text().strip(), "other").call("GET", "/v1/models").status == 401
        assert KEY not in server.end()[1]


def test_help_loads_no_server() -> None:
    code = "import sys; from streambatch.cli.serve import serve; print({'aiohttp', 'msgspec', 'sqlite3'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30).stdout == "set()\n"


def test_a_plugin_that_loads_nothing() -> None:
    code = "import sys, streambatch.testing; print({'aiohttp', 'msgspec', 'pytest', 'asyncio'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30).stdout == "set()\n"


def test_a_threaded_server_raises_where_it_cannot_start(tmp_path: Path) -> None:
    before = threading.active_count()
    with ThreadedServer(Settings(data_dir=tmp_path / "a")) as running:
        port = int(running.url.split(":")[2].split("/")[0])
        with pytest.raises(ConfigError, match=f"port {port}"):
            ThreadedServer(Settings(data_dir=tmp_path / "b", port=port)).start()
        with pytest.raises(ConfigError, match="in use"):
            ThreadedServer(Settings(data_dir=tmp_path / "a")).start()
    assert threading.active_count() == before


def test_it_stops_within_seconds_in_the_middle_of_work(tmp_path: Path) -> None:
    with local_server(speed=1e5, data_dir=tmp_path) as server:
        wire = Wire(server.url, server.api_key)
        for _ in range(4):
            wire.create(chat(20_000))
        began = time.monotonic()
    assert time.monotonic() - began < 5


def test_the_fixture(streambatch_server: LocalServer) -> None:
    wire = Wire(streambatch_server.url, streambatch_server.api_key)
    assert streambatch_server.url.endswith("/v1")
    assert wire.run(chat(3), metadata={"streambatch": "r/s/1"})["status"] == "completed"
    assert streambatch_server.ledger()["rows_executed"] == streambatch_server.ledger("r")["rows_executed"] == 3
    assert streambatch_server.api_key not in repr(streambatch_server)


def test_a_client_that_leaves_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    with Process(tmp_path) as server:
        wire = server.wire
        with socket.create_connection((wire.host, wire.port), timeout=10) as connection:
            head = f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 999999\r\n"
            part = '\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
            connection.sendall(
                (head + "Content-Type: multipart/form-data; boundary=b\r\n" + part).encode() + chat(1000)
            )
            time.sleep(0.1)
        assert wire.upload(chat(1)).status == 200
        deadline = time.monotonic() + 5
        while len(list((tmp_path / "data" / "contents").iterdir())) != 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "Traceback" not in server.end()[1]


def test_connections_dropped_by_script_leave_no_noise(tmp_path: Path) -> None:
    script = tmp_path / "faults.toml"
    rules = [("drop", "models"), ("act_and_drop", "list"), ("cut", "content")]
    script.write_text(
        "".join(f'[[http]]\ndo = "{do}"\non = "{on}"\n' + "at = 10\n" * (do == "cut") for do, on in rules)
    )
    with Process(tmp_path, "--faults", str(script)) as server:
        wire = server.wire
        file_id = wire.upload(chat(1)).json["id"]
        for path in ("/v1/models", "/v1/batches", f"/v1/files/{file_id}/content"):
            with pytest.raises((OSError, http.client.HTTPException)):
                wire.call("GET", path)
        code, said = server.end()
    assert (code, said.count("\n")) == (0, 1)


def test_memory_does_not_grow_with_uploads_rows_or_batches(tmp_path: Path) -> None:
    """100 MiB uploaded, run and downloaded in eight batches; beside them 200 batches at once."""
    with Process(tmp_path, "--speed", "100000") as server:
        wire = server.wire
        wire.run(chat(10))
        idle = server.resident_mib
        data = b"".join(line.replace(b"question", b"q" * 900) + b"\n" for line in chat(12_500).split(b"\n")[:-1])
        ids = [wire.create(data)["id"] for _ in range(8)]
        few = wire.upload(chat(10)).json["id"]
        asked = {"input_file_id": few, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        ids += [wire.call("POST", "/v1/batches", asked).json["id"] for _ in range(200)]
        peak = idle
        for batch_id in ids:
            wire.content(wire.finish(batch_id)["output_file_id"])
            peak = max(peak, server.resident_mib)
        assert wire.ledger()["rows_executed_again"] == 7 * 12_500 + 10 * 200
        assert max(peak, server.resident_mib) - idle < 25
