"""Makes the CMake files of the ROS 2 wheels name this machine's Python and numpy headers.

In: nothing; it works on the environment whose Python runs it. Out: how many files it rewrote.
The wheels' exported CMake targets name the include folders of the machine that built the wheels
(/opt/python/cp311-cp311/...). Running it twice changes nothing the second time.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import numpy

PYTHON = r'/opt/python/cp\d+-cp\d+'
PYTHON_HEADERS = re.compile(PYTHON + r'/include/python3\.\d+')
NUMPY_HEADERS = re.compile(PYTHON + r'/lib/python3\.\d+/site-packages/numpy/_?core/include')


def main() -> int:
    count = 0
    for path in sorted(Path(sys.prefix, 'share').glob('*/cmake/*.cmake')):
        text = path.read_text(encoding='utf-8')
        fixed = PYTHON_HEADERS.sub(lambda _: sysconfig.get_path('include'), text)
        fixed = NUMPY_HEADERS.sub(lambda _: numpy.get_include(), fixed)
        if fixed != text:
            path.write_text(fixed, encoding='utf-8')
            count += 1
    print(f'{count} CMake files of the ROS wheels now name this machine\'s headers')
    return 0


if __name__ == '__main__':
    sys.exit(main())
