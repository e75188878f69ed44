"""Settings of Hypothesis: ``dev`` while one writes, ``ci`` before a change lands, ``nightly`` with time.

``SAVEVM_FUZZ_PROFILE`` names one; ``ci`` is what there is without.  ``SAVEVM_FUZZ_DATABASE`` names a
database of examples that machines share: ``redis://HOST:PORT/NUMBER`` or a directory.
"""

import os
from typing import Final

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase, MultiplexedDatabase

__all__ = ["PROFILES", "load", "shared"]

PROFILE: Final = "SAVEVM_FUZZ_PROFILE"
DATABASE: Final = "SAVEVM_FUZZ_DATABASE"
_REDIS: Final = ("redis://", "rediss://", "unix://")

_SLOW: Final = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
# What Hypothesis takes to be CI changes its own defaults: all that matters is said here.
_ANY: Final = settings(
    deadline=None,
    suppress_health_check=_SLOW,
    derandomize=False,
    database=DirectoryBasedExampleDatabase(".hypothesis/examples"),
    print_blob=True,
)

PROFILES: Final = {
    "dev": settings(_ANY, max_examples=25),
    # The same examples each time: whoever breaks something sees it, and nobody else.
    "ci": settings(_ANY, max_examples=100, derandomize=True, database=None),
    "nightly": settings(_ANY, max_examples=10_000),
}
"""By name; none has a deadline, as no machine is the same as another."""


def shared(place: str) -> ExampleDatabase:
    """The database of examples at ``place``.

    Raises:
        ImportError: ``place`` is a Redis, and the package ``redis`` is not there.
        ValueError: it is a URL of something else.
    """
    if place.startswith(_REDIS):
        from hypothesis.extra.redis import RedisExampleDatabase
        from redis import Redis

        return RedisExampleDatabase(Redis.from_url(place))
    if "://" in place:
        raise ValueError(f"{DATABASE}={place!r}: neither a directory nor redis://")
    return DirectoryBasedExampleDatabase(place)


def load(name: str | None = None) -> str:
    """Make a profile that of all tests, and give its name; raises ``KeyError`` for one that is none.

    One that has a database of this machine has the shared one besides: each finds what all found.
    """
    name = name or os.environ.get(PROFILE, "ci")
    profile = PROFILES[name]
    if (place := os.environ.get(DATABASE)) and profile.database is not None:
        profile = settings(profile, database=MultiplexedDatabase(profile.database, shared(place)))
    settings.register_profile(name, profile)
    settings.load_profile(name)
    return name
