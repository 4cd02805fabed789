"""Repositories that many modules here test with; a module that needs others has fixtures of the same names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vstore
from tests.repositories import KINDS, HandClock, Place, quick_folder


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with quick_folder() as folder:
        yield Place.new(request.param, folder)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with place.create() as repository:
        yield repository


@pytest.fixture
def local() -> Iterator[vstore.Repository]:
    """One kind is enough for what never reaches the storage."""
    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        yield repository
