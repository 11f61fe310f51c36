"""Options that hold for all tests."""

import os

from hypothesis import HealthCheck, settings

# No deadlines: the machine that runs the tests may be busy with something else.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "fuzz", deadline=None, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
