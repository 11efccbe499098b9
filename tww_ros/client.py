"""What a planner needs, in one place: `from tww_ros.client import TwwClient`.

It needs ROS, which of the rest only `tww_ros.node` does. docs/planners.md shows how it is used.
"""

from tww_ros.node.client import TwwClient, choice_texts, chosen
from tww_ros.node.streams import QueryStream, WatchStream

__all__ = ['QueryStream', 'TwwClient', 'WatchStream', 'choice_texts', 'chosen']
