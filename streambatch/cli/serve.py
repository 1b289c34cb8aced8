"""`streambatch serve`: the local OpenAI-compatible batch server as a process. Flags to settings, nothing else."""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click


@click.command(context_settings={"auto_envvar_prefix": "STREAMBATCH"})
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address to listen on; not loopback needs a key."
)
@click.option("--port", type=int, default=8377, show_default=True, help="0 chooses a free one, and says it.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Gets the base URL once connections are accepted.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Where files and batches live; without it they end with the server.",
)
@click.option("--profile", default="openai", show_default=True, help="The service to be like.")
@click.option("--faults", type=click.Path(path_type=Path), help="A TOML script of misbehaviour; see docs/server.md.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the answers.")
@click.option("--speed", type=float, default=10.0, show_default=True, help="Divides the service's durations.")
@click.option("--tier", help="Enqueued-token limits of this usage tier: free, 1 to 5.  [none: no limit]")
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="The variable that holds the key; without it any bearer is accepted, on loopback.",
)
@click.option("--webhook-url", metavar="URL", help="Gets a signed post at the end of each batch.")
@click.option("--webhook-secret-env", metavar="NAME", help="The variable that holds the webhook's secret, whsec_...")
def serve(
    host: str,
    port: int,
    ready_file: Path | None,
    data_dir: Path | None,
    profile: str,
    faults: Path | None,
    seed: int,
    speed: float,
    tier: str | None,
    api_key_env: str | None,
    webhook_url: str | None,
    webhook_secret_env: str | None,
) -> None:
    """Run a local batch server that speaks the OpenAI API, until Ctrl-C.

    Batches validate, run and finish by time; answers derive from the seed and the request alone.
    """
    from streambatch.server.script import Script, read_script
    from streambatch.server.serving import serve as run_server
    from streambatch.server.settings import Settings

    script = Script() if faults is None else read_script(faults)
    with ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streambatch-server-")))
        settings = Settings(
            data_dir=data_dir,
            host=host, port=port, api_key=_key(api_key_env), seed=seed, speed=speed, profile=profile, tier=tier,
            webhook_url=webhook_url, webhook_secret=_key(webhook_secret_env, "--webhook-secret-env"),
        )  # fmt: skip
        run_server(settings, script, ready_file, _say)


def _key(name: str | None, flag: str = "--api-key-env") -> str | None:
    """What that variable holds."""
    from streambatch.errors import ConfigError

    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(f"The environment has no {name}, which {flag} names.")
    return key


def _say(url: str) -> None:
    click.echo(f"streambatch server at {url} (Ctrl-C ends it)", err=True)
