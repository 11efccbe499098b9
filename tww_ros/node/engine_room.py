"""EngineRoom: the one engine of a node: made, replaced and closed without stopping the executor.

In: parameters, and calls from coroutines of the executor. Out: the engine, or the error that says
why there is none. What takes long happens in threads (Bell.work) and is awaited. The counters of
engines that have ended are kept, so that those of ~/status never go back.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.task import Future

from tww_ros.config import EngineConfig, NodeConfig
from tww_ros.errors import BusyError, EngineClosedError, StoreError
from tww_ros.node.compat import Bell
from tww_ros.node.loading import LOADED, Progress, load_checkpoint
from tww_ros.node.parameters import Parameters
from tww_ros.types import EngineStats, Note

LoadModel = Callable[[NodeConfig], Any]
# Of EngineStats: what only grows while an engine lives.
COUNTED = ('frames_received', 'frames_watched', 'frames_skipped', 'frames_dropped',
           'frames_rejected', 'notes_written', 'notes_skipped', 'answers_done', 'answers_failed',
           'answers_cancelled', 'steps', 'step_tokens')


class EngineRoom:
    """Holds the engine. Its methods are called in the executor.

    load: makes the model; None: the checkpoint of the parameters. on_note: is called in the
    executor.
    """

    def __init__(self, bell: Bell, log: RcutilsLogger, parameters: Parameters,
                 load: LoadModel | None, on_note: Callable[[Note], None]) -> None:
        self.engine: Any = None
        self._ending: Any = None
        self.replacing = False
        # How many engines there were.
        self.engines = 0
        self.progress = Progress()
        self.tier_bytes: dict[str, int] = {}
        self._bell = bell
        self._log = log
        self._parameters = parameters
        self._load = load or partial(load_checkpoint, progress=self.progress)
        self._on_note = on_note
        self._ended: Counter[str] = Counter()
        self._doing = ''
        self._waiting: list[Future] = []
        self._measuring = False
        self._closed = False

    def counted(self) -> dict[str, int]:
        """Counters over all engines there were, by their names in EngineStats."""
        engine = self.engine or self._ending
        if engine is None:
            return dict(self._ended)
        stats: EngineStats = engine.stats()
        return {name: self._ended[name] + getattr(stats, name) for name in COUNTED}

    @property
    def problem(self) -> str:
        """Why the engine neither watches nor answers any more; empty when it does."""
        if self.engine is None or self.replacing or self.engine.alive:
            return ''
        return self.engine.stats().last_error or 'it was closed, and did not end in time'

    async def open(self) -> None:
        """Load the model and start an engine; raises what keeps it from that."""
        self.progress.value = 0.0
        engine = await self._bell.work(
            self._make, self._parameters.node, self._parameters.engine, name='tww-loader')
        if self._closed:
            engine.close(timeout_s=self._timeout_s)
            raise EngineClosedError('the node is shutting down')
        self._take(engine)

    async def close(self) -> None:
        """End the engine, when what is being done to its memory is done, and free the model.

        Also after open() has failed: what it had loaded is freed.
        """
        while self._doing:
            future: Future = Future()
            self._waiting.append(future)
            await future
        if self._closed:
            return
        self.progress.value = 0.0
        if self.engine is not None:
            self._ending, self.engine = self.engine, None
            await self._bell.work(self._end, self._ending)
            self._book(self._ending)
            self._ending = None
        await self._bell.work(_give_back)

    def close_now(self) -> bool:
        """The same at the end of the process, when the executor does not spin; blocks.

        False when a thread is still at work, perhaps inside torch: it cannot be stopped.
        """
        self._closed = True
        engine, self.engine = self.engine, None
        if engine is not None:
            self._end(engine)
            self._book(engine)
        return self._bell.join(self._timeout_s)

    async def replace(self, folder: str) -> int:
        """Go on with the memory in a folder; how many segments that is.

        StoreError when there is none of this model: the present memory goes on. Both are held for
        a moment. StoreError also when the present engine does not end in time: a model is never
        stepped by two of them.
        """
        with self.alone('another memory is being loaded'):
            self.replacing = True
            try:
                old = self.engine
                new = await self._bell.work(self._remember, old, folder)
                try:
                    if not await self._bell.work(self._end, old):
                        raise StoreError(
                            f'{folder} was not loaded: the present engine was closed, and a '
                            f'thread of it did not end within {self._timeout_s:g} s; load again '
                            'when its step is done, or raise shutdown_timeout_s')
                    if self._closed:
                        raise EngineClosedError('the node is shutting down')
                    new.start()
                except BaseException:
                    new.close()
                    raise
                self._book(old)
                self._take(new)
                return len(new.memory)
            finally:
                self.replacing = False

    @contextlib.contextmanager
    def alone(self, doing: str) -> Iterator[None]:
        """Keep others from changing memory meanwhile; BusyError when somebody does."""
        if self._doing:
            raise BusyError(f'{self._doing}; call again when that is done')
        self._doing = doing
        try:
            yield
        finally:
            self._doing = ''
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                self._bell.finish(future, True)

    async def measure(self) -> None:
        """Look how many bytes each tier has; the folder's database may take a while to tell."""
        engine = self.engine
        if engine is None:
            self.tier_bytes = {}
        elif not self._measuring:
            self._measuring = True
            try:
                self.tier_bytes = await self._bell.work(lambda: engine.memory.tier_bytes)
            except StoreError:
                # It was closed meanwhile; otherwise last_error tells of it.
                self.tier_bytes = {}
            finally:
                self._measuring = False

    @property
    def _timeout_s(self) -> float:
        return self._parameters.node.shutdown_timeout_s

    def _take(self, engine: Any) -> None:
        """Have a new engine, and tell it what was changed live while it was made."""
        self.engine = engine
        self.engines += 1
        engine.set_sample_fps(self._parameters.engine.watch.sample_fps)

    def _book(self, engine: Any) -> None:
        """Keep what an engine counted that has ended."""
        stats: EngineStats = engine.stats()
        for name in COUNTED:
            self._ended[name] += getattr(stats, name)
        # What still waited is lost.
        self._ended['frames_dropped'] += stats.frames_waiting

    # In threads

    def _make(self, node: NodeConfig, config: EngineConfig) -> Any:
        model = self._load(node)
        from tww_ros import Engine
        _set_apart()
        self.progress.value = LOADED
        engine = Engine(model, config, on_note=partial(self._bell.call, self._on_note)).start()
        self.progress.value = 1.0
        return engine

    def _remember(self, old: Any, folder: str) -> Any:
        from tww_ros import Engine
        present = old.config.memory.folder
        if present and Path(present).expanduser().resolve() == Path(folder).resolve():
            raise StoreError(f'{folder} is the memory that is in use; nothing was done')
        return Engine.load(old.model, folder, self._parameters.engine,
                           on_note=partial(self._bell.call, self._on_note))

    def _end(self, engine: Any) -> bool:
        """Close it; False when a thread of it did not end in time."""
        ended = engine.close(timeout_s=self._timeout_s)
        if not ended:
            self._log.warning(f'a thread of the engine did not end within {self._timeout_s:g} s '
                              '(shutdown_timeout_s)')
        return ended


def _set_apart() -> None:
    """Look for garbage no more in what libraries and the model are made of: a third of a million
    objects, through which the collector would go every now and then while all threads wait."""
    gc.collect()
    gc.freeze()


def _give_back() -> None:
    """Free what nobody holds any more: engines and models are full of cycles."""
    gc.unfreeze()
    gc.collect()
    torch = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
