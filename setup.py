"""Installs the Python package, its launch and config files, and its programs.

Built by colcon as an ament_python package. `ros2 run` and launch look for programs in lib/tww_ros
(setup.cfg says so); `scripts/run` puts that folder on PATH. pyproject.toml has no [build-system]
and no [project] on purpose: with either, colcon would not take the build type from package.xml.
"""

from glob import glob

from setuptools import find_packages, setup

PACKAGE = 'tww_ros'

setup(
    name=PACKAGE,
    version='0.1.0',
    description='A robot\'s cameras watched, remembered, and asked about while it keeps watching.',
    author='tww_ros developers',
    author_email='tww_ros@users.noreply.github.com',
    maintainer='tww_ros developers',
    maintainer_email='tww_ros@users.noreply.github.com',
    license='Apache-2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['model/embedded/*', 'memory/page/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        (f'share/{PACKAGE}/launch', sorted(glob('launch/*.launch.py'))),
        (f'share/{PACKAGE}/config', sorted(glob('config/*'))),
    ],
    python_requires='>=3.10',
    install_requires=['setuptools'],
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'tww = tww_ros.cli:main',
            'tww_node = tww_ros.node.main:main',
            'tabletop_camera = tww_ros.node.tabletop_camera:main',
        ],
        # Named like the module, so that pytest takes it once when -p names it too.
        'pytest11': ['tww_ros.replay.pytest_plugin = tww_ros.replay.pytest_plugin'],
    },
)
