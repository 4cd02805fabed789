"""Options and hypothesis profiles that all tests share."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

DEEP_TIMEOUT_S = 3600

# No deadlines: tests do real I/O, on machines that do other things too.
settings.register_profile("dev", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", settings.get_profile("dev"), max_examples=50, derandomize=True, print_blob=True
)
settings.register_profile("deep", settings.get_profile("dev"), max_examples=2000, stateful_step_count=100)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deep", action="store_true", help="also run the tests marked deep, and hypothesis harder"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Many tests start Python anew. One that may not write bytecode compiles the whole package each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    settings.load_profile(os.environ.get("VSTORE_HYPOTHESIS") or default_profile(config))


def default_profile(config: pytest.Config) -> str:
    if config.getoption("--deep"):
        return "deep"
    return "ci" if os.environ.get("CI") else "dev"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    deep = config.getoption("--deep")
    for item in items:
        if deep and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(DEEP_TIMEOUT_S))
        if not deep and item.get_closest_marker("deep") is not None:
            item.add_marker(pytest.mark.skip(reason="deep: run with --deep"))
