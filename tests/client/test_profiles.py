"""Profiles as data: the names, a file of one's own, what is read from where, and what of it goes over the wire."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from streambatch import access, configure
from streambatch.core.profiles import CHAT, KEYS, OPENAI, PROFILES, Dialect, Profile, check_endpoint, of_table
from streambatch.edge.client import HttpBatchApi
from streambatch.edge.profiles import read_profile
from streambatch.edge.service import Service
from streambatch.errors import ConfigError
from streambatch.options import parse_all
from tests.client.stage import BATCH, FILE, KEY, serving

PAGE = Path(__file__).parent.parent.parent / "docs" / "profiles.md"
BEGIN, END = "<!-- profiles:", "<!-- end of profiles -->"


# -- the page


def table() -> str:
    """The profiles as the page shows them."""
    head = "| profile | address | variable of the key | requests | bytes | differs in |\n|---|---|---|---|---|---|"
    return "\n".join([head, *map(_line, PROFILES.values())])


def _line(profile: Profile) -> str:
    address = "yours" if profile.base_url is None else f"`{profile.base_url}`"
    requests = min(profile.max_requests, OPENAI.max_requests)
    cells = [
        f"`{profile.name}`",
        address,
        f"`{profile.key_env}`",
        f"{requests:,}",
        f"{profile.max_bytes:,}",
        _differs(profile),
    ]
    return f"| {' | '.join(cells)} |"


def _differs(profile: Profile) -> str:
    words = [f"`{endpoint}` alone" for endpoint in profile.endpoints]
    plain = Dialect()
    if profile.dialect.purpose != plain.purpose:
        words.append(f"purpose `{profile.dialect.purpose}`")
    if profile.dialect.window != plain.window:
        words.append(f"window `{profile.dialect.window}`")
    if profile.key_header != OPENAI.key_header:
        words.append(f"header `{profile.key_header}`")
    return ", ".join(words)


def with_table(page: str) -> str:
    before, rest = page.split(BEGIN, 1)
    comment, rest = rest.split("\n", 1)
    return f"{before}{BEGIN}{comment}\n\n{table()}\n\n{END}{rest.split(END, 1)[1]}"


def test_the_page_shows_the_profiles() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python -m tests.client.test_profiles"
    assert all(f"| `{name}` |" in page for name in KEYS)


# -- names and files


def test_the_local_server_knows_the_profiles_that_it_is_said_to() -> None:
    from streambatch.server.profiles import PROFILES as SERVED

    assert set(configure.LOCAL_PROFILES) == set(SERVED) <= set(PROFILES)
    for name, served in SERVED.items():
        mine = PROFILES[name]
        assert mine.max_bytes <= served.max_bytes
        assert mine.max_requests <= served.max_requests
        assert mine.dialect.purpose in served.batch_purposes
        assert mine.dialect.window in served.windows
        assert set(mine.endpoints) <= set(served.endpoints)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'key_env = "K"\nbase_url = "https://x.example/v1"\nwindow = "7d"\nmax_requests = 7\nendpoints = ["/v4/chat"]\n'
    )
    assert read_profile(str(path)) == Profile(
        base_url="https://x.example/v1",
        key_env="K",
        max_requests=7,
        endpoints=("/v4/chat",),
        dialect=Dialect(window="7d"),
    )


def test_an_empty_file_is_openai_under_another_name() -> None:
    assert of_table({}, "x.toml") == Profile(name="file", base_url=OPENAI.base_url)
    assert of_table({"key_env": "K"}, "x.toml").base_url is None, "whose key that is nobody knows"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('purpos = "batch"', "has an unknown key 'purpos'; did you mean purpose?"),
        ("zzz = 1", "has an unknown key 'zzz'; known: base_url, key_env, key_header, purpose, window, max_requests, "),
        ('name = "mine"', "has an unknown key 'name'"),
        ("max_requests = 0", "max_requests in the profile mine.toml must be a whole number of 1 or more"),
        ('max_bytes = "1MB"', "max_bytes in the profile mine.toml must be a whole number"),
        ("max_bytes = true", "must be a whole number"),
        ("purpose = 7", "purpose in the profile mine.toml must be a text"),
        ('window = ""', "window in the profile mine.toml must be a text that is not empty"),
        ('endpoints = "/v1/x"', "endpoints in the profile mine.toml must be a list of paths"),
        ('endpoints = ["v1/x"]', "must be a list of paths"),
        ('key_header = "X-Key"', "key_header in the profile mine.toml must be Authorization or api-key"),
        ("max_bytes = ", "The profile mine.toml is no TOML"),
    ],
)
def test_what_a_file_can_get_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_profile("mine.toml")
    assert sentence in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"The profile none\.toml can't be read"):
        read_profile("none.toml")
    with pytest.raises(ConfigError, match="There is no profile 'none'; known: openai, "):
        read_profile("none")


def test_endpoints() -> None:
    check_endpoint(PROFILES["openai-2024"], CHAT)
    check_endpoint(OPENAI, "/v1/anything")
    with pytest.raises(ConfigError, match="the profile openai-2024 takes /v1/chat/completions alone"):
        check_endpoint(PROFILES["openai-2024"], "/v1/embeddings")
    with pytest.raises(ConfigError, match="the profile takes /a and /b alone"):
        check_endpoint(Profile(endpoints=("/a", "/b")), "/c")


# -- what is read from where

OF_OPENAI = {
    "OPENAI_API_KEY": "sk-1",
    "OPENAI_BASE_URL": "https://o.example/v1",
    "OPENAI_ORG_ID": "org",
    "OPENAI_PROJECT_ID": "p",
}
KEYS_OF_ALL = {
    profile.key_env: f"key-of-{profile.name}" for profile in PROFILES.values() if profile.key_env != OPENAI.key_env
}


def service(**given: Any) -> Service:
    values = parse_all(given)
    return access.service(values, {**OF_OPENAI, **KEYS_OF_ALL}, configure.profile(values))


@pytest.mark.parametrize("name", [name for name in PROFILES if not name.startswith("openai")])
def test_another_service_is_told_nothing_of_openai(name: str) -> None:
    known = PROFILES[name]
    given = {} if known.base_url else {"base_url": "https://mine.example/v1"}
    made = service(profile=name, **given)
    assert made.base_url == (known.base_url or "https://mine.example/v1")
    assert (made.api_key, made.organization, made.project) == (f"key-of-{name}", None, None)
    assert made.key_header == known.key_header


def test_openai_is_told_all() -> None:
    for name in ("openai", "openai-2024"):
        made = service(profile=name)
        assert (made.base_url, made.api_key, made.organization) == ("https://o.example/v1", "sk-1", "org")


def test_an_address_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match="the profile azure has none that fits everybody; give yours with --base-url"):
        service(profile="azure")
    with pytest.raises(ConfigError, match="TOGETHER_API_KEY is not set"):
        access.service({}, OF_OPENAI, configure.profile({"profile": "together"}))


def test_limits_of_a_profile() -> None:
    assert configure.limits({"profile": "together"}).max_bytes == 100_000_000
    assert configure.limits({"profile": "azure"}).max_requests == 50_000, "more than that is more than we promise"
    assert configure.limits({"profile": "groq", "max_requests": 7, "max_bytes": 9}).max_requests == 7
    with pytest.raises(ConfigError, match="more than the 100000000"):
        configure.limits({"profile": "together", "max_bytes": 200_000_000})


def test_a_service_made_by_hand_carries_the_key_as_the_profile_wants(tmp_path: Path) -> None:
    values = parse_all({"output": tmp_path / "out.jsonl", "profile": "azure"})
    given = Service(base_url="https://r.openai.azure.com/openai/v1", api_key="k")
    assert configure.configure(["in.jsonl"], values, {}, "again", given).service.key_header == "api-key"


def test_the_embedded_server_is_like_some(tmp_path: Path) -> None:
    given = {"output": tmp_path / "out.jsonl", "local": True}
    assert configure.configure(["in.jsonl"], parse_all({**given, "profile": "groq"}), {}, "").profile.name == "groq"
    with pytest.raises(ConfigError, match="can't be like the profile parasail; with --local it is one of openai, "):
        configure.configure(["in.jsonl"], parse_all({**given, "profile": "parasail"}), {}, "")


# -- over the wire


@pytest.mark.anyio
@pytest.mark.parametrize(("header", "shown"), [("Authorization", ("Bearer " + KEY, None)), ("api-key", (None, KEY))])
async def test_a_dialect_is_spoken(tmp_path: Path, header: str, shown: tuple[str | None, str | None]) -> None:
    heard: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.Response:
        assert (request.headers.get("Authorization"), request.headers.get("api-key")) == shown
        if request.method == "POST" and request.path.endswith("/files"):
            heard["purpose"] = (await request.post())["purpose"]
            return web.json_response(FILE)
        heard["window"] = (await request.json())["completion_window"]
        return web.json_response(BATCH)

    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{}\n")
    async with serving(handler) as url:
        api = HttpBatchApi(Service(base_url=url, api_key=KEY, key_header=header), Dialect("batch-api", "7d"))
        await api.upload(str(path), "in.jsonl")
        await api.create_batch("file-1", CHAT, {})
        await api.aclose()
    assert heard == {"purpose": "batch-api", "window": "7d"}


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
