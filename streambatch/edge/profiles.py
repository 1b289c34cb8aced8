"""Reading a profile: one that comes with the package, or a file that the user wrote. What a profile means is `core.profiles`'."""

from streambatch.core.profiles import Profile, named, of_table
from streambatch.errors import ConfigError

ENDING = ".toml"


def read_profile(name: str) -> Profile:
    """The profile of this name or, where it ends in .toml, in this file. Raises ConfigError."""
    if not name.endswith(ENDING):
        return named(name)
    import tomllib  # only who reads one pays for it

    try:
        with open(name, "rb") as file:
            return of_table(tomllib.load(file), name)
    except OSError as error:
        raise ConfigError(f"The profile {name} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"The profile {name} is no TOML: {error}.") from error
