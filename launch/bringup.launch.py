"""Start the node, and a simulated camera for it when asked to.

    ros2 launch tww_ros bringup.launch.py model:=/path/to/checkpoint image:=/camera/image_raw
    ros2 launch tww_ros bringup.launch.py tabletop:=true
    ros2 launch tww_ros bringup.launch.py cameras:=front,rear params_file:=jetson_orin_nano_8gb
    ros2 launch tww_ros bringup.launch.py namespace:=robot1 memory_dir:=/data/robot1
    ros2 launch tww_ros bringup.launch.py namespace:=robot2 memory_dir:=/data/robot2

Every argument is a parameter, a remapping or an option of the program `tww_node`, which can be
started by itself too. Arguments win over the parameter file; those not given leave it alone.
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_context import LaunchContext
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

# name → (default, description)
ARGUMENTS = {
    'model': ('', 'checkpoint directory, hub id, "embedded" or "tiny-random"'),
    'quantization': ('', 'of the weights: none, int8 or nf4'),
    'device': ('', 'where the model runs: auto, cpu, cuda, cuda:1, ...'),
    'dtype': ('', 'of the weights: auto, float32, bfloat16 or float16'),
    'cameras': ('', 'names of cameras, separated by commas; each is watched on <name>/image'),
    'image': ('', 'topic to watch in place of image; with cameras, use ROS remappings instead'),
    'image_transport': ('', 'raw or compressed'),
    'image_reliability': ('', 'best_effort or reliable'),
    'pose_topic': ('', 'topic that says where the robot is'),
    'pose_type': ('', 'of its messages: odometry, pose or pose_with_covariance'),
    'memory_dir': ('', 'folder of the memory on disk, one for each node; the next start goes on '
                       'with it'),
    'autostart': ('', 'false: the node waits to be configured and activated'),
    'tabletop': ('false', 'true: start tabletop_camera too, which publishes what is watched'),
    'params_file': ('tww.yaml', 'YAML file with parameters: a path, or a name in config/, such '
                    'as desktop_8gb'),
    'use_sim_time': ('false', 'true: follow /clock, as a replay publishes it'),
    'namespace': ('', 'namespace of the node and of its relative topics'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
}
# Arguments that are parameters of the same name.
PARAMETERS = ('model', 'quantization', 'device', 'dtype', 'image_transport', 'image_reliability',
              'pose_topic', 'pose_type')


def generate_launch_description() -> LaunchDescription:
    """Called by launch."""
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=default, description=description)
          for name, (default, description) in ARGUMENTS.items()),
        OpaqueFunction(function=start_nodes),
    ])


def start_nodes(context: LaunchContext) -> list[Node]:
    """The node with those arguments that were given, and the simulated camera."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    parameters = {name: given[name] for name in PARAMETERS if given[name]}
    if given['cameras']:
        parameters['cameras'] = [name.strip() for name in given['cameras'].split(',')]
    if given['memory_dir']:
        parameters['memory.folder'] = given['memory_dir']
    if given['autostart']:
        parameters['autostart'] = is_true(given['autostart'])
    parameters['use_sim_time'] = is_true(given['use_sim_time'])
    logger = '.'.join([*given['namespace'].strip('/').split('/'), 'tww']).lstrip('.')
    nodes = [Node(
        package='tww_ros', executable='tww_node', namespace=given['namespace'],
        parameters=[str(params_file(given['params_file'])), parameters],
        remappings=[('image', given['image'])] if given['image'] else [],
        arguments=['--ros-args', '--log-level', f'{logger}:={given["log_level"]}'],
        output='screen', emulate_tty=True)]
    if is_true(given['tabletop']):
        first = f'{parameters["cameras"][0]}/image' if 'cameras' in parameters else ''
        watched = given['image'] or first
        nodes.append(Node(
            package='tww_ros', executable='tabletop_camera', namespace=given['namespace'],
            parameters=[{'use_sim_time': parameters['use_sim_time']}],
            remappings=[('image', watched)] if watched else [],
            output='screen', emulate_tty=True))
    return nodes


def is_true(text: str) -> bool:
    """Whether an argument says yes."""
    return text.lower() in ('true', '1', 'yes')


def params_file(name: str) -> Path:
    """A path as it is, or a file of this package's config folder by its name."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = Path(get_package_share_directory('tww_ros'), 'config', name).with_suffix('.yaml')
    if not shipped.is_file():
        known = sorted(file.stem for file in shipped.parent.glob('*.yaml'))
        raise FileNotFoundError(f'params_file: expected a file, or one of {known}; got {name!r}')
    return shipped
