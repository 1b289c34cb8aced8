"""How a server is set up: what the command line and the embedding code say, checked once."""

import ipaddress
from pathlib import Path

import msgspec

from streambatch.errors import ConfigError
from streambatch.server.limits import TIERS

PROFILES = ("openai",)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`api_key` None: any bearer that is not empty is accepted. `speed` divides every duration but the 24-hour window.

    `validating_s`, `finalizing_s`, `cancelling_s` and `rows_per_s` (of one batch) are at speed 1.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    api_key: str | None = None
    seed: int = 0
    speed: float = 10.0
    profile: str = "openai"
    tier: str | None = None
    ranges: bool = False
    validating_s: float = 3.0
    finalizing_s: float = 1.0
    cancelling_s: float = 2.0
    rows_per_s: float = 1000.0
    window_s: int = 86_400

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ConfigError(f"speed is {self.speed:g}; it must be above 0.")
        if self.profile not in PROFILES:
            raise ConfigError(f"Unknown profile {self.profile!r}; the local server knows {', '.join(PROFILES)}.")
        if self.tier is not None and self.tier not in TIERS:
            raise ConfigError(f"Unknown tier {self.tier!r}; known are {', '.join(TIERS)}.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must lie between 0 and 65535.")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("The server's API key is empty.")
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"Host {self.host} can be reached from other machines: give the server a key with --api-key-env."
            )


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
