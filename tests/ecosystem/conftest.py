"""Honours the marks that xarray's test modules set and its own, unshipped, conftest acts on.

By default its suite runs with both Zarr formats on a local directory, and with version 3 on an object store: what keys
mean and where their bytes are do not know of each other. --deep runs all.
"""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = (
            item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        )
        for mark in item.iter_markers("skip_if_param"):
            wanted = {
                name: value for name, value in mark.kwargs.items() if name not in ("reason", "condition")
            }
            if mark.kwargs.get("condition", True) and wanted.items() <= params.items():
                item.add_marker(pytest.mark.skip(reason=mark.kwargs.get("reason", "by xarray's own mark")))
        if "TestMemory" in item.nodeid and params.get("default_zarr_format") == 2:
            item.add_marker(pytest.mark.deep)
