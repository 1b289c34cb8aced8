"""How a server is set up: what the command line and the embedding code say, checked once."""

import base64
import ipaddress
import re
from pathlib import Path

import msgspec

from streambatch.errors import ConfigError
from streambatch.server.limits import TIERS
from streambatch.server.profiles import PROFILES, Profile


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`api_key` None: any bearer that is not empty is accepted. `speed` divides every duration but the 24-hour window.

    `creates_per_hour` and `uploads_per_minute` None: no limit. `validating_s`, `finalizing_s`, `cancelling_s` and `rows_per_s`
    (of one batch) are at speed 1. Each batch's end is posted to `webhook_url`, signed with `webhook_secret` (`whsec_`, base64).
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
    creates_per_hour: int | None = 2_000
    uploads_per_minute: int | None = 1_000
    webhook_url: str | None = None
    webhook_secret: str | None = None

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ConfigError(f"speed is {self.speed:g}; it must be above 0.")
        if self.profile not in PROFILES:
            raise ConfigError(f"Unknown profile {self.profile!r}; the local server knows {', '.join(PROFILES)}.")
        if self.tier is not None and self.tier not in TIERS:
            raise ConfigError(f"Unknown tier {self.tier!r}; known are {', '.join(TIERS)}.")
        if self.tier is not None and self.service.limits is None:
            raise ConfigError(f"The profile {self.profile} has no usage tiers.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must lie between 0 and 65535.")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("The server's API key is empty.")
        self._check_webhook()
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"Host {self.host} can be reached from other machines: give the server a key with --api-key-env."
            )

    def _check_webhook(self) -> None:
        if (self.webhook_url is None) != (self.webhook_secret is None):
            raise ConfigError("A webhook needs both a URL and a secret.")
        if self.webhook_url is None or self.webhook_secret is None:
            return
        if not re.fullmatch(r"https?://[^\s/?#]+\S*", self.webhook_url):
            raise ConfigError("The webhook's URL must begin with http:// or https:// and name a host.")
        kind, _, secret = self.webhook_secret.partition("_")
        try:
            good = kind == "whsec" and bool(base64.b64decode(secret, validate=True))
        except ValueError:
            good = False
        if not good:
            raise ConfigError("The webhook's secret must be whsec_ and base64, as the service gives them out.")

    @property
    def service(self) -> Profile:
        """The service to be like."""
        return PROFILES[self.profile]


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
