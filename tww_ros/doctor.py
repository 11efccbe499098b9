"""`tww doctor`: is this machine able to run tww_ros, and what to do where it is not.

In: nothing. Out: a list of `Check`s and an exit code. What can crash or hang (kernels, DDS,
extension modules built against another NumPy) runs in a child process with a time limit, so that a
fault is a finding and not the end of the doctor. Things are used, not only imported: bitsandbytes
imports on machines where its first 4-bit product fails, cv_bridge where its first conversion does.

    ok   works     warn   an optional part is missing     fail   needed, or installed and broken
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PROBE_TIMEOUT_S = 120
_ROS_VARIABLES = ('ROS_DISTRO', 'ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE',
                  'ROS_LOCALHOST_ONLY', 'RMW_IMPLEMENTATION')


@dataclass(frozen=True)
class Check:
    """One finding. status: 'ok', 'warn' or 'fail'; fix: what to do unless it is ok."""

    name: str
    status: str
    detail: str
    fix: str = ''


def diagnose(as_json: bool = False) -> int:
    """Print every check; returns 1 when one failed, else 0."""
    checks = []
    for check in all_checks():
        checks.append(check)
        if not as_json:
            print(f'{check.status:5} {check.name:14} {check.detail}', flush=True)
            if check.fix:
                print(f'{"":20} → {check.fix}')
    failed = [check.name for check in checks if check.status == 'fail']
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    elif failed:
        print(f'\nbroken: {", ".join(failed)}')
    else:
        print('\nall that is needed works')
    return 1 if failed else 0


def all_checks() -> Iterator[Check]:
    """Every check, one after the other."""
    yield _python()
    yield _memory()
    yield _disk()
    torch = _probe('torch')
    yield _judge('torch', torch, 'install torch (scripts/setup does)')
    yield _judge('transformers', _probe('transformers'),
                 'install transformers 5.23 or newer (scripts/setup does)')
    yield _judge('video', _probe('video'), 'install av and pillow (scripts/setup does)')
    yield _judge('bags', _probe('bags'), 'install rosbags (scripts/setup does)')
    yield _judge('OpenCV', _probe('opencv'), 'install opencv-python-headless (scripts/setup does)')
    yield _four_bit()
    yield from _ros()


def _python() -> Check:
    return Check('python', 'ok', f'{platform.python_version()}, {sys.executable}')


def _memory() -> Check:
    import psutil
    memory = psutil.virtual_memory()
    detail = f'{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB'
    if memory.available < 1.5e9:
        return Check('memory', 'warn', detail, 'close other programs; torch takes about 1 GB')
    return Check('memory', 'ok', detail)


def _disk() -> Check:
    folder = Path(tempfile.gettempdir())
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b'tww' * 1_000)
            file.flush()
            written = Path(file.name).read_bytes() == b'tww' * 1_000
    except OSError as error:
        return Check('disk', 'fail', f'{folder}: {error}', 'make room, or set TMPDIR')
    free = shutil.disk_usage(folder).free
    detail = f'{folder} can be written and read, {free / 1e9:.1f} GB free'
    if not written:
        return Check('disk', 'fail', f'{folder} gives back other bytes than written', 'set TMPDIR')
    return Check('disk', 'ok' if free > 1e9 else 'warn', detail,
                 '' if free > 1e9 else 'bags and models need room; make some or set TMPDIR')


def _four_bit() -> Check:
    result = _probe('four_bit')
    if result.get('missing'):
        return Check('4-bit kernels', 'warn', 'bitsandbytes is not installed',
                     'only quantization nf4 and int8 need it: pip install bitsandbytes')
    return _judge('4-bit kernels', result, 'use quantization none, or install a bitsandbytes '
                                           'built for this machine (on a Jetson: from source)')


def _ros() -> Iterator[Check]:
    shown = [f'{name}={os.environ[name]}' for name in _ROS_VARIABLES if os.environ.get(name)]
    domain = os.environ.get('ROS_DOMAIN_ID') or '0'
    known = domain.isdigit() and (int(domain) <= 101 or 215 <= int(domain) <= 232)
    yield Check('ROS variables', 'ok' if known else 'fail', ', '.join(shown) or 'none set',
                '' if known else 'set ROS_DOMAIN_ID to 0 … 101 (Linux gives higher ports away)')
    rclpy = _probe('rclpy')
    if rclpy.get('missing'):
        sourced = os.environ.get('ROS_DISTRO')
        if sourced:
            yield Check('rclpy', 'fail', f'ROS {sourced} is sourced, but {rclpy["error"]}',
                        f'use the Python that {sourced} was built for, or leave the virtual '
                        'environment')
        else:
            yield Check('rclpy', 'warn', 'not installed: no node and no tww replay; tww ask works',
                        'source your ROS 2, or use scripts/run')
        return
    yield _judge('rclpy', rclpy, 'source one ROS 2 distribution only, in a fresh shell')
    yield _judge('interfaces', _probe('interfaces'),
                 'build and source the workspace: scripts/setup, or colcon build and '
                 'source install/setup.bash')
    bridge = _probe('cv_bridge')
    if bridge.get('missing'):
        yield Check('cv_bridge', 'warn', 'not installed: the encodings of docs/ros.md are read, '
                    'rare ones such as 8UC3 are not',
                    'sudo apt install ros-$ROS_DISTRO-cv-bridge')
    else:
        yield _judge('cv_bridge', bridge, 'its NumPy is another than yours: use numpy<2 with the '
                                          'distribution\'s cv_bridge')
    yield _judge('DDS', _probe('dds'), 'is a firewall closing the loopback, or /dev/shm full? Try '
                                       'ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST')


def _judge(name: str, result: dict[str, Any], fix: str) -> Check:
    if 'error' in result:
        return Check(name, 'fail', result['error'], fix)
    return Check(name, 'ok', result['detail'])


def _probe(name: str) -> dict[str, Any]:
    """Run one of PROBES in a child process: {'detail': …} or {'error': …, 'missing': bool}."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([*filter(None, [os.environ.get('PYTHONPATH')]), root])
    try:
        done = subprocess.run([sys.executable, '-m', 'tww_ros.doctor', name], capture_output=True,
                              text=True, timeout=_PROBE_TIMEOUT_S, stdin=subprocess.DEVNULL,
                              env={**os.environ, 'PYTHONPATH': path}, check=False)
    except subprocess.TimeoutExpired:
        return {'error': f'no result within {_PROBE_TIMEOUT_S} s'}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"probe"'):
            return json.loads(line)['probe']
    lines = done.stderr.strip().splitlines() or ['no message']
    how = f'killed by signal {-done.returncode}' if done.returncode < 0 else 'ended'
    return {'error': f'{how}: {lines[-1][:200]}'}


def _version(*packages: str) -> str:
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return 'of the distribution'


# Probes: run in the child; return the detail, or raise. A missing top module is told apart.

def _probe_torch() -> str:
    import torch
    product = torch.ones(8, 8) @ torch.ones(8, 8)
    if not torch.equal(product, torch.full((8, 8), 8.0)):
        raise ArithmeticError('a matrix product came out wrong')
    if not torch.cuda.is_available():
        return f'{torch.__version__}, CPU only, {torch.get_num_threads()} threads'
    free, total = torch.cuda.mem_get_info()
    on_gpu = torch.ones(64, 64, device='cuda') @ torch.ones(64, 64, device='cuda')
    if not bool((on_gpu == 64).all()):
        raise ArithmeticError('a matrix product on the GPU came out wrong')
    return (f'{torch.__version__}, {torch.cuda.get_device_name()} (compute '
            f'{".".join(map(str, torch.cuda.get_device_capability()))}), {free / 1e9:.1f} GB free '
            f'of {total / 1e9:.1f} GB')


def _probe_transformers() -> str:
    import transformers
    for needed in ('AttentionInterface', 'Qwen3VLForConditionalGeneration'):
        getattr(transformers, needed)               # loaded by transformers when first asked for
    return f'{transformers.__version__} with Qwen3-VL'


def _probe_video() -> str:
    import av
    import PIL
    return f'av {av.__version__}, pillow {PIL.__version__}'


def _probe_bags() -> str:
    importlib.import_module('rosbags.rosbag2')
    return f'rosbags {_version("rosbags")}'


def _probe_opencv() -> str:
    import cv2
    import numpy as np
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    _, data = cv2.imencode('.png', image)
    if not np.array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR), image):
        raise ArithmeticError('a PNG came back with other pixels')
    return f'{cv2.__version__}, NumPy {np.__version__}'


def _probe_four_bit() -> str:
    import bitsandbytes
    import torch
    from bitsandbytes import functional
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    dtype = torch.bfloat16 if device == 'cuda' else torch.float32
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 128, generator=generator)                               # [out, in]
    x = torch.randn(4, 128, generator=generator)                                      # [rows, in]
    packed, state = functional.quantize_4bit(weight.to(device, dtype), quant_type='nf4')
    got = bitsandbytes.matmul_4bit(x.to(device, dtype), packed.t(), quant_state=state)
    restored = functional.dequantize_4bit(packed, state).float().cpu()
    error = float((restored - weight).norm() / weight.norm())
    # Against the same 4-bit weights, so that only the kernel is judged; bf16 keeps 8 bits.
    kernel = float((got.float().cpu() - x @ restored.T).norm() / (x @ restored.T).norm())
    if not (error < 0.15 and kernel < 0.02):
        raise ArithmeticError(f'nf4 on {device} is wrong: weights off by {error:.1%} (expected '
                              f'about 9%), product off by {kernel:.2%} (expected below 2%)')
    return (f'bitsandbytes {bitsandbytes.__version__}: nf4 on {device} keeps weights to '
            f'{error:.1%}, and its product agrees to {kernel:.2%}')


def _probe_rclpy() -> str:
    # By name: only tww_ros.node depends on ROS, and the doctor must run without.
    importlib.import_module('rclpy.node')
    rmw = importlib.import_module('rclpy.utilities').get_rmw_implementation_identifier()
    return f'{_version("rclpy", "ros-rclpy", "ros-jazzy-rclpy")}, {rmw}'


def _probe_interfaces() -> str:
    try:
        request = importlib.import_module('tww_interfaces.srv').Ask.Request()
        for action in ('Query', 'Watch'):
            getattr(importlib.import_module('tww_interfaces.action'), action).Goal()
    except AttributeError:                          # the source folder was found, not the build
        raise ModuleNotFoundError('tww_interfaces is not built or not sourced, or an older '
                                  'one is') from None
    return f'tww_interfaces, Ask with {len(request.get_fields_and_field_types())} fields'


def _probe_cv_bridge() -> str:
    import numpy as np
    bridge = importlib.import_module('cv_bridge').CvBridge()
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    back = bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(image, 'bgr8'), 'rgb8')
    if not np.array_equal(np.asarray(back)[:, :, ::-1], image):
        raise ArithmeticError('bgr8 to rgb8 came out wrong')
    return f'{_version("cv-bridge", "cv_bridge")}, NumPy {np.__version__}'


def _probe_dds() -> str:
    """One image from a publisher to a subscriber of this process, on this machine only."""
    import time
    from array import array
    rclpy = importlib.import_module('rclpy')
    qos = importlib.import_module('rclpy.qos').qos_profile_sensor_data
    image_type = importlib.import_module('sensor_msgs.msg').Image
    image = image_type(height=480, width=640, step=1_920, encoding='rgb8',
                       data=array('B', bytes(480 * 1_920)))
    rclpy.init()
    try:
        node = rclpy.create_node('tww_doctor')
        received: list[Any] = []
        node.create_subscription(image_type, '~/image', received.append, qos)
        publisher = node.create_publisher(image_type, '~/image', qos)
        start = time.monotonic()
        while not received and time.monotonic() - start < 15:
            publisher.publish(image)
            rclpy.spin_once(node, timeout_sec=0.2)
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
    if not received:
        raise TimeoutError('no image of 0.9 MB came through in 15 s')
    if len(received[0].data) != len(image.data):
        raise ArithmeticError(f'{len(received[0].data)} of {len(image.data)} bytes came through')
    return 'an image of 0.9 MB came through'


PROBES: dict[str, Callable[[], str]] = {
    'torch': _probe_torch, 'transformers': _probe_transformers, 'video': _probe_video,
    'bags': _probe_bags, 'opencv': _probe_opencv, 'four_bit': _probe_four_bit,
    'rclpy': _probe_rclpy, 'interfaces': _probe_interfaces, 'cv_bridge': _probe_cv_bridge,
    'dds': _probe_dds}
_TOP_MODULES = {'four_bit': 'bitsandbytes', 'rclpy': 'rclpy', 'cv_bridge': 'cv_bridge'}


def _run_probe(name: str) -> dict[str, Any]:
    try:
        return {'detail': PROBES[name]()}
    except Exception as error:
        top = _TOP_MODULES.get(name)
        missing = isinstance(error, ModuleNotFoundError) and error.name == top
        message = ' '.join(str(error).split())
        return {'error': f'{type(error).__name__}: {message[:300]}', 'missing': missing}


if __name__ == '__main__':
    print(json.dumps({'probe': _run_probe(sys.argv[1])}))
