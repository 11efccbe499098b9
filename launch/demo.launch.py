"""A simulated camera above a table, the node that watches it, and how to look on.

    ros2 launch tww_ros demo.launch.py
    ros2 launch tww_ros demo.launch.py model:=/path/to/checkpoint quantization:=nf4

All other arguments are those of bringup.launch.py, which it includes. The shipped model
(`embedded`) knows this table and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, LogInfo, OpaqueFunction
from launch.launch_context import LaunchContext
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

HINT = """
Look on:  rviz2, then Add, By topic, {ns}/image; or Foxglove: ros2 launch foxglove_bridge \
foxglove_bridge_launch.xml, and open the layout {layout}
Read:     ros2 topic echo {ns}/tww/notes --field text
Ask:      ros2 service call {ns}/tww/ask tww_interfaces/srv/Ask \
"{{question: 'What is on the table?', session_id: demo}}"
"""


def generate_launch_description() -> LaunchDescription:
    """Called by launch."""
    here = Path(__file__).resolve().parent
    return LaunchDescription([
        DeclareLaunchArgument('model', default_value='embedded',
                              description='what watches: "embedded", "tiny-random", a directory '
                                          'or a hub id'),
        DeclareLaunchArgument('params_file', default_value='embedded',
                              description='YAML file with parameters: a path, or a name in '
                                          'config/'),
        DeclareLaunchArgument('namespace', default_value='',
                              description='namespace of the node and of the camera'),
        OpaqueFunction(function=hint),
        # It sees the arguments of this file, as every included one does.
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(here / 'bringup.launch.py')),
                                 launch_arguments=[('tabletop', 'true')]),
    ])


def hint(context: LaunchContext) -> list[LogInfo]:
    """What to type in another terminal."""
    namespace = LaunchConfiguration('namespace').perform(context).strip('/')
    layout = Path(__file__).resolve().parents[1] / 'config' / 'tww.foxglove.json'
    return [LogInfo(msg=HINT.format(ns=f'/{namespace}' if namespace else '', layout=layout))]
