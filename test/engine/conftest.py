"""Engines that end with their test, with both threads, and behind a gate when asked."""

import threading

import pytest
from engine.harness import SMALL, WAIT_S, Gate, engine_threads, until

from tww_ros import Engine, EngineConfig, load_model
from tww_ros.model.scripted import ScriptedModel


@pytest.fixture
def gate():
    """Open at first: so that an engine can start and watch before a test closes it."""
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def start(gate):
    """start(model, **settings) → a running engine, closed at the end of the test.

    Without a model: ScriptedModel behind the fixture `gate`. settings: dotted names as keywords,
    `note__enabled=False`; on_note and on_segment as they are.
    """
    engines = []

    def make(model=None, *, on_note=None, on_segment=None, **settings):
        # Timed steps would make what shares a step a matter of luck.
        flat = {**SMALL, 'step.measure': False,
                **{name.replace('__', '.'): value for name, value in settings.items()}}
        engine = Engine(model or ScriptedModel(before_step=gate), EngineConfig.from_flat(flat),
                        on_note=on_note, on_segment=on_segment)
        engines.append(engine)
        engine.start()
        if model is None:
            until(lambda: engine.model.steps == 1, 'the header was read')
        return engine

    yield make
    gate.open()
    assert all([engine.close(WAIT_S) for engine in engines]), 'a thread did not end'  # noqa: C419


@pytest.fixture(autouse=True)
def no_thread_left_behind(monkeypatch):
    """Every thread ends, and none with an exception."""
    died = []
    monkeypatch.setattr(threading, 'excepthook', died.append)
    yield
    for thread in engine_threads():
        thread.join(WAIT_S)
    assert engine_threads() == []
    assert died == []


@pytest.fixture(scope='session')
def tiny():
    """tiny-random with stock prompts."""
    return load_model('tiny-random', device='cpu')


@pytest.fixture(scope='session')
def tiny_tww():
    """tiny-random that speaks as Think While Watching does."""
    return load_model('tiny-random', device='cpu', positions='decoupled', prompts='tww')
