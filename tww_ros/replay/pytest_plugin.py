"""pytest plugin: the fixture `tww_bag`, for tests in a robot's own repository.

    def test_door(tww_bag):
        memory = tww_bag('bags/door', model='embedded')
        assert memory.ask('Is the door open?', at_s=12.5, choices=('yes', 'no')).text == 'yes'

In: a bag beside the test file, below pytest's root folder, or by its full path; a model by name,
or an object such as ScriptedModel. Out: a BagMemory, closed at the end of the test. A model is
loaded once for all tests that name it. `--tww-model NAME` takes the place of the tests' names.

pytest finds the plugin by its entry point when tww_ros is installed; elsewhere, say
`pytest_plugins = ['tww_ros.replay.pytest_plugin']` in the root's conftest.py.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tww_ros.replay.bag_memory import BagMemory


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest."""
    parser.getgroup('tww', 'recorded bags, watched by tww_ros').addoption(
        '--tww-model', metavar='NAME', help='the model of tww_bag, whatever the tests name')


@pytest.fixture(scope='session')
def tww_load() -> Callable[..., Any]:
    """load_model that loads each model once."""
    from tww_ros import load_model
    return functools.cache(load_model)


@pytest.fixture
def tww_bag(request: pytest.FixtureRequest,
            tww_load: Callable[..., Any]) -> Iterator[Callable[..., BagMemory]]:
    """tww_bag(bag, model, *, settings, cameras, timeout_s, …load_model's) → BagMemory."""
    from tww_ros.replay.bag_memory import BagMemory
    with contextlib.ExitStack() as opened:
        def watch(bag: str | Path, model: Any = 'embedded', *,
                  settings: dict[str, Any] | None = None, cameras: dict[str, str] | None = None,
                  timeout_s: float = 600.0, **loading: str) -> BagMemory:
            name = request.config.getoption('--tww-model') or model
            loaded = tww_load(name, **loading) if isinstance(name, str) else name
            return opened.enter_context(BagMemory(
                _found(Path(bag), request), loaded, settings, cameras, timeout_s))
        yield watch


def _found(bag: Path, request: pytest.FixtureRequest) -> Path:
    places = [folder / bag for folder in (request.path.parent, request.config.rootpath)]
    return next((place for place in places if place.exists()), bag)
