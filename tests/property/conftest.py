"""Hypothesis profiles: `fast` in every test run, `deep` (HYPOTHESIS_PROFILE=deep) for `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

# No deadlines: how long an example takes says more about the machine than about the code.
settings.register_profile(
    "fast",
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    # The same examples in each run, so that a failure is the change's; `deep` looks for new ones.
    derandomize=True,
    print_blob=True,
)
settings.register_profile(
    "deep",
    max_examples=5_000,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
# The name under which tests/conftest.py and `make fuzz` ask for it.
settings.register_profile("fuzz", settings.get_profile("deep"))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
