"""Replay a bag to the node, which follows the bag's clock and goes on answering afterwards.

    ros2 launch tww_ros replay.launch.py bag:=street_bag model:=/path/to/checkpoint
    ros2 launch tww_ros replay.launch.py bag:=street_bag image:=/front/image_raw rate:=2.0
    ros2 launch tww_ros replay.launch.py bag:=street_bag rate:=0

All other arguments are those of bringup.launch.py, which it includes, with use_sim_time and
config/replay.yaml. `tww test` checks answers about a bag without any of this.
"""

from __future__ import annotations

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.launch_context import LaunchContext
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

from launch import LaunchDescription

# name → (default, description); without a default it must be given
ARGUMENTS = {
    'bag': (None, 'a rosbag2 folder, or one .mcap or .db3 file'),
    'rate': ('1.0', '2 = twice as fast as recorded, 0 = as fast as the node takes the frames'),
    'loop': ('false', 'true: again and again, until interrupted'),
    'wait': ('600', 'seconds that the replay waits for the node to have loaded its model'),
    'params_file': ('replay', 'YAML file with parameters: a path, or a name in config/'),
    'namespace': ('', 'namespace of the node'),
}


def generate_launch_description() -> LaunchDescription:
    """Called by launch."""
    bringup = Path(__file__).resolve().parent / 'bringup.launch.py'
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=default, description=description)
          for name, (default, description) in ARGUMENTS.items()),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(bringup)),
                                 launch_arguments=[('use_sim_time', 'true')]),
        OpaqueFunction(function=replay),
    ])


def replay(context: LaunchContext) -> list[ExecuteProcess]:
    """`tww replay` for the node of that namespace."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    namespace = given['namespace'].strip('/')
    fast = float(given['rate']) == 0
    return [ExecuteProcess(
        cmd=[ExecutableInPackage(package='tww_ros', executable='tww'), 'replay', given['bag'],
             *(['--as-fast-as-possible'] if fast else ['--rate', given['rate']]),
             *(['--loop'] if given['loop'].lower() in ('true', '1', 'yes') else []),
             '--wait', given['wait'], '--node', f'/{namespace}/tww' if namespace else '/tww'],
        output='screen', emulate_tty=True)]
