"""tww_ros: a robot's cameras watched, remembered, and asked about while it keeps watching.

    from tww_ros import Engine, EngineConfig, Frame, Question, load_model

The core works without ROS; only `tww_ros.node` imports rclpy. Importing this package is cheap:
torch and transformers are loaded when `Engine` or `load_model` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tww_ros.config import EngineConfig
from tww_ros.types import Answer, AnswerPiece, Evidence, Frame, Note, Pose, Question, SegmentInfo

if TYPE_CHECKING:
    from tww_ros.engine.engine import Engine
    from tww_ros.model.loading import load_model

__version__ = '0.1.0'
__all__ = ['Answer', 'AnswerPiece', 'Engine', 'EngineConfig', 'Evidence', 'Frame', 'Note', 'Pose',
           'Question', 'SegmentInfo', 'load_model', '__version__']


def __getattr__(name: str) -> Any:
    if name == 'Engine':
        from tww_ros.engine.engine import Engine
        return Engine
    if name == 'load_model':
        from tww_ros.model.loading import load_model
        return load_model
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
