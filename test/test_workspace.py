"""The workspace holds together: versions agree, dependencies are declared, programs exist.

Most of it reads files only. Tests of the built environment need scripts/test, like those in
test/ros.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import tww_ros

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / 'scripts' / 'requirements'
IMPORT_NAMES = {'opencv-python-headless': 'cv2', 'pillow': 'PIL', 'pyyaml': 'yaml'}
ROSDEP_KEYS = {
    'matplotlib': 'python3-matplotlib', 'numpy': 'python3-numpy', 'pillow': 'python3-pil',
    'opencv-python-headless': 'python3-opencv', 'psutil': 'python3-psutil',
    'pyyaml': 'python3-yaml', 'rich': 'python3-rich', 'rosbags': 'python3-rosbags-pip',
    'torch': 'python3-pytorch-pip', 'tqdm': 'python3-tqdm',
    'transformers': 'python3-transformers-pip', 'cv-bridge': 'cv_bridge',
    'hypothesis': 'python3-hypothesis', 'pytest': 'python3-pytest',
    'pytest-timeout': 'python3-pytest-timeout', 'ruff': 'python3-ruff-pip',
}
NOT_IN_ROSDEP = {'accelerate', 'av', 'bitsandbytes', 'peft', 'safetensors', 'tokenizers'}
# Whoever imports the plugin is pytest; triton comes with torch for CUDA, and kernels need both.
BROUGHT_ALONG = {'pytest_plugin.py': {'pytest'}, 'kernels.py': {'triton'}}
# A layer may import from its own and those before it.
LAYERS = (('types', 'config', 'errors'), ('video', 'memory'), ('model',), ('engine',),
          ('node', 'replay', 'world', 'evaluation', 'training'), ('cli', 'client', 'doctor'))

built = pytest.mark.skipif(shutil.which('tww_node') is None,
                           reason='needs the built workspace: run through scripts/test')


def requirements(*lists: str) -> set[str]:
    lines = [line for name in lists for line in (REQUIREMENTS / name).read_text().splitlines()]
    return {re.match(r'[A-Za-z0-9-]+', line)[0].lower() for line in lines
            if line and not line.startswith('#')}


def manifest(path: str) -> ElementTree.Element:
    return ElementTree.parse(ROOT / path).getroot()


def dependencies(path: str, *tags: str) -> set[str]:
    return {entry.text for entry in manifest(path) if entry.tag in tags}


def setup_argument(name: str) -> object:
    """The literal value of one argument of setup() in setup.py."""
    tree = ast.parse((ROOT / 'setup.py').read_text())
    call = next(node for node in ast.walk(tree)
                if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'setup')
    return ast.literal_eval(next(word.value for word in call.keywords if word.arg == name))


def imported(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def python_files(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob('*.py'))]
    assert files
    return files


def test_versions_agree():
    changelogs = [(ROOT / path).read_text()
                  for path in ('CHANGELOG.rst', 'tww_interfaces/CHANGELOG.rst')]
    newest = [re.search(r'^(\d+\.\d+\.\d+)( \(.*\))?\n-+$', text, re.MULTILINE)[1]
              for text in changelogs]
    versions = {
        'tww_ros.__version__': tww_ros.__version__,
        'setup.py': setup_argument('version'),
        'package.xml': manifest('package.xml').findtext('version'),
        'tww_interfaces/package.xml': manifest('tww_interfaces/package.xml').findtext('version'),
        'CHANGELOG.rst': newest[0],
        'tww_interfaces/CHANGELOG.rst': newest[1],
    }
    assert len(set(versions.values())) == 1, versions


def test_license_and_maintainer_agree():
    for path in ('package.xml', 'tww_interfaces/package.xml'):
        assert manifest(path).findtext('license') == setup_argument('license') == 'Apache-2.0'
        assert manifest(path).find('maintainer').get('email') == setup_argument('maintainer_email')
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()


@pytest.mark.parametrize('folder, lists, tags', [
    ('tww_ros', ('python.txt', 'torch.txt', 'cv.txt'), ('depend', 'exec_depend')),
    ('test', ('python.txt', 'torch.txt', 'cv.txt', 'dev.txt'),
     ('depend', 'exec_depend', 'test_depend')),
])
def test_every_import_is_declared(folder, lists, tags):
    known = {IMPORT_NAMES.get(name, name).replace('-', '_') for name in requirements(*lists)}
    known |= dependencies('package.xml', *tags) | {'tww_ros'} | set(sys.stdlib_module_names)
    for path in python_files(folder):
        unknown = {name.split('.')[0] for name in imported(path)} - known
        unknown -= BROUGHT_ALONG.get(path.name, set())
        # Tests share helpers: modules that lie beside them, and folders of test/ (conftest.py).
        unknown -= {name for name in unknown if folder == 'test' and (
            (path.parent / f'{name}.py').is_file() or (ROOT / 'test' / name).is_dir())}
        assert not unknown, f'{path} imports {unknown}: declare it in package.xml or requirements'


def test_every_ros_dependency_is_imported():
    names = {name.split('.')[0] for path in python_files('tww_ros') for name in imported(path)}
    assert dependencies('package.xml', 'depend') <= names


def test_package_xml_declares_every_python_requirement():
    declared = dependencies('package.xml', 'depend', 'exec_depend', 'test_depend')
    names = requirements('python.txt', 'torch.txt', 'cv.txt', 'dev.txt') - NOT_IN_ROSDEP
    assert {ROSDEP_KEYS[name] for name in names} <= declared
    assert NOT_IN_ROSDEP <= requirements('python.txt')


@pytest.mark.parametrize('distro, prefix', [('kilted', 'ros-'), ('jazzy', 'ros-jazzy-')])
def test_wheels_bring_every_ros_dependency(distro, prefix):
    no_wheel = {'launch', 'launch_ros', 'cv_bridge', 'tww_interfaces', 'ament_cmake'}
    needed = dependencies('package.xml', 'depend', 'exec_depend')
    needed |= dependencies('tww_interfaces/package.xml', 'depend', 'build_depend')
    needed = {name for name in needed if not name.startswith('python3-')} - no_wheel
    wheels = requirements(f'ros-{distro}.txt')
    assert {prefix + name.replace('_', '-') for name in needed} <= wheels


def test_every_ros_wheel_has_a_fixed_version():
    for path in REQUIREMENTS.glob('ros-*.txt'):
        for line in path.read_text().splitlines():
            assert line.startswith('#') or re.fullmatch(r'[a-z0-9-]+==[0-9.]+', line), line


def test_imports_go_one_way_and_ros_stays_in_node():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    ros = dependencies('package.xml', 'depend')
    for path in python_files('tww_ros'):
        package = path.relative_to(ROOT / 'tww_ros').parts[0].removesuffix('.py')
        if package == '__init__':
            continue
        for name in imported(path):
            parts = name.split('.')
            assert parts[0] not in ros or package == 'node', f'{path} imports {name}'
            if parts[0] != 'tww_ros' or parts[1] not in level:
                continue
            assert level[parts[1]] <= level[package], f'{path} imports {name}'
            if parts[1] != package:
                pair = {parts[1], package}
                assert not pair <= {'node', 'evaluation', 'training'}, f'{path} imports {name}'


def test_pyproject_leaves_the_build_type_to_package_xml():
    text = (ROOT / 'pyproject.toml').read_text()
    assert '\n[build-system]' not in text and '\n[project]' not in text
    assert manifest('package.xml').find('export/build_type').text == 'ament_python'


def test_programs_name_functions_that_exist():
    programs = dict(re.split(r' = ', line) for line in
                    setup_argument('entry_points')['console_scripts'])
    assert set(programs) == {'tww', 'tww_node', 'tabletop_camera'}
    for target in programs.values():
        module, function = target.split(':')
        tree = ast.parse((ROOT / f'{module.replace(".", "/")}.py').read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_tww_starts_without_ros_and_without_torch():
    code = ('import sys; sys.modules["rclpy"] = sys.modules["torch"] = None;'
            'import tww_ros.cli; sys.argv = ["tww", "--help"]; sys.exit(tww_ros.cli.main())')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                            timeout=60, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert 'usage: tww' in result.stdout


def shell(code: str, cwd: Path, **env: str) -> str:
    """What a bash script prints after scripts/lib/env.sh in `cwd` has been sourced."""
    result = subprocess.run(['bash', '-euc', 'source scripts/lib/env.sh; ' + code], cwd=cwd,
                            env={'PATH': os.environ['PATH'], 'HOME': '/somewhere', **env},
                            capture_output=True, text=True, timeout=60)
    return (result.stdout + result.stderr).strip()


@pytest.fixture
def checkout(tmp_path):
    """A copy of what scripts/setup looks at, in a path with a space."""
    copy = tmp_path / 'with space' / 'tww'
    shutil.copytree(ROOT / 'scripts', copy / 'scripts')
    shutil.copytree(ROOT / 'tww_interfaces', copy / 'tww_interfaces')
    for folder in ('resource', 'launch', 'config'):
        shutil.copytree(ROOT / folder, copy / folder)
    for name in ('package.xml', 'setup.py', 'setup.cfg', 'colcon_defaults.yaml'):
        shutil.copy(ROOT / name, copy)
    return copy


def test_environment_lies_where_paths_have_no_space(checkout):
    state = shell('tww_locate; echo $STATE', checkout, XDG_CACHE_HOME='/somewhere/cache')
    assert re.fullmatch(r'/somewhere/cache/tww_ros/[0-9a-f]{12}/kilted', state)
    state = shell('tww_locate jazzy; echo $STATE', checkout, XDG_CACHE_HOME='/some where/cache')
    assert re.fullmatch(r'/var/tmp/cache-\d+/tww_ros/[0-9a-f]{12}/jazzy', state)
    state = shell('tww_locate; echo $STATE', checkout, TWW_STATE_DIR='/opt/tww')
    assert state == '/opt/tww/kilted'
    simple = checkout.parent.parent / 'tww'
    checkout.rename(simple)
    assert shell('tww_locate; echo $STATE', simple) == f'{simple}/.tww/kilted'


def test_bad_choices_of_environment_are_refused_with_a_reason(checkout):
    assert 'expected kilted, jazzy or sourced' in shell('tww_locate foxy', checkout)
    assert 'got no ROS_DISTRO' in shell('tww_locate sourced', checkout)
    assert 'without spaces' in shell('tww_locate', checkout, TWW_STATE_DIR='/a b')
    result = subprocess.run([checkout / 'scripts' / 'run'], capture_output=True, text=True,
                            timeout=60)
    assert result.returncode == 2 and 'usage: scripts/run' in result.stderr


@pytest.mark.parametrize('path, part', [
    ('tww_interfaces/srv/Ask.srv', 'build'), ('setup.py', 'build'), ('package.xml', 'build'),
    ('tww_interfaces/msg/New.msg', 'build'), ('config/new.yaml', 'build'),
    ('scripts/requirements/python.txt', 'venv'), ('scripts/requirements/ros-kilted.txt', 'venv'),
    ('scripts/requirements/ros-jazzy.txt', ''), ('scripts/test', ''),
])
def test_setup_does_again_what_a_changed_file_asks_for(checkout, path, part):
    def hashes():
        return shell('tww_locate kilted; tww_venv_hash; tww_build_hash', checkout).split('\n')

    before = hashes()
    with open(checkout / path, 'a') as file:
        file.write('# changed\n')
    after = hashes()
    assert len(before) == 2 and all(re.fullmatch('[0-9a-f]{64}', text) for text in before + after)
    changed = [name for name, old, new in zip(('venv', 'build'), before, after, strict=True)
               if old != new]
    assert changed == ([part] if part else [])


def test_wheels_get_the_headers_of_this_machine(tmp_path, monkeypatch, capsys):
    path = ROOT / 'scripts' / 'lib' / 'fix_ros_wheels.py'
    spec = importlib.util.spec_from_file_location('fix_ros_wheels', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = tmp_path / 'share' / 'some_msgs' / 'cmake' / 'export_some_msgsExport.cmake'
    target.parent.mkdir(parents=True)
    target.write_text('X "/opt/python/cp312-cp312/include/python3.12;/opt/python/cp312-cp312/lib/'
                      'python3.12/site-packages/numpy/_core/include;${_IMPORT_PREFIX}/include"\n')
    monkeypatch.setattr(sys, 'prefix', str(tmp_path))
    monkeypatch.setattr(module.sysconfig, 'get_path', lambda _: '/usr/include/python3.12')
    monkeypatch.setattr(module.numpy, 'get_include', lambda: '/venv/numpy/include')
    assert module.main() == 0 and module.main() == 0
    assert target.read_text() == ('X "/usr/include/python3.12;/venv/numpy/include;'
                                  '${_IMPORT_PREFIX}/include"\n')
    assert capsys.readouterr().out.startswith('1 CMake files')


@built
def test_colcon_finds_the_package_and_the_nested_interfaces():
    result = subprocess.run([sys.executable, '-m', 'colcon', 'list', '--names-only'], cwd=ROOT,
                            env={**os.environ, 'COLCON_DEFAULTS_FILE': 'colcon_defaults.yaml'},
                            capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ['tww_interfaces', 'tww_ros'], result.stderr


@built
def test_launch_and_config_files_are_installed():
    from ament_index_python.packages import get_package_share_directory
    share = Path(get_package_share_directory('tww_ros'))
    for folder, pattern in (('launch', '*.launch.py'), ('config', '*')):
        names = {path.name for path in (ROOT / folder).glob(pattern)}
        assert names and names == {path.name for path in (share / folder).iterdir()}


@built
def test_run_passes_on_exit_code_signals_and_output(tmp_path):
    run = ROOT / 'scripts' / 'run'
    result = subprocess.run([run, 'sh', '-c', 'echo "$1"; pwd; exit 7', 'sh', 'a  b'],
                            cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (7, f'a  b\n{tmp_path}\n')
    code = 'import time; print(1, flush=True); time.sleep(60)'
    with subprocess.Popen([run, sys.executable, '-c', code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'1\n'
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
