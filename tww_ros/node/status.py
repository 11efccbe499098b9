"""~/status: the state of the node as one message.

In: the engine's counters, the cameras' counters, the settings. Out: MemoryStatus. It keeps
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from tww_interfaces.msg import MemoryStatus
from tww_ros.node.conversions import ros_string, to_duration, to_time
from tww_ros.node.engine_room import EngineRoom
from tww_ros.node.parameters import Parameters
from tww_ros.types import EngineStats

# Of EngineStats: how it is now.
PRESENT = ('frames_waiting', 'epochs', 'segments', 'notes_waiting', 'answers_active',
           'answers_waiting', 'sessions', 'watches', 'memory_bytes', 'session_bytes',
           'memory_tokens', 'last_error')
TIERS = ('device', 'quantized', 'host', 'disk')


def status_message(state: int, parameters: Parameters, room: EngineRoom,
                   images: Mapping[str, int]) -> MemoryStatus:
    """All but its stamp. images: received, rejected and ignored, of all cameras."""
    node, engine = parameters.node, room.engine
    message = MemoryStatus(
        state=state, model=node.model, device=node.device, quantization=node.quantization,
        positions=node.positions, loading_progress=room.progress.value if engine is None else 1.0)
    for name, count in {**room.counted(),
                        **{f'images_{what}': count for what, count in images.items()}}.items():
        setattr(message, name, count)
    if engine is None:
        return message
    message.description = engine.model.describe()
    message.positions = engine.model.scheme
    stats: EngineStats = engine.stats()
    for name in PRESENT:
        setattr(message, name, getattr(stats, name))
    message.last_error = ros_string(stats.last_error)
    for tier in TIERS:
        setattr(message, f'{tier}_bytes', room.tier_bytes.get(tier, 0))
    message.newest = to_time(stats.newest_ns)
    message.ingest_lag = to_duration(stats.ingest_lag_s)
    message.first_token_time = to_duration(stats.first_token_s)
    message.answer_time = to_duration(stats.answer_s)
    return message
