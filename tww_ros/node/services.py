"""Services of the node about its memory and sessions; questions are in questions.py.

    ~/save_memory ~/load_memory ~/clear_memory ~/list_segments     what is remembered
    ~/get_status ~/close_session ~/enable_ingest                   how it is, forget a talk, pause

In: requests. Out: responses; every error becomes an error code and a message. What may take long
(disks, long lists) is done in a thread and awaited, so nothing here blocks the executor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import ReentrantCallbackGroup
from std_srvs.srv import SetBool

from tww_interfaces import msg as messages
from tww_interfaces.srv import (
    ClearMemory,
    CloseSession,
    GetStatus,
    ListSegments,
    LoadMemory,
    SaveMemory,
)
from tww_ros.errors import BusyError, StoreError, UnknownCameraError
from tww_ros.node.compat import Bell
from tww_ros.node.conversions import (
    DEFAULT_SESSION,
    from_time,
    ros_string,
    segment_message,
    window_from,
)
from tww_ros.node.refusing import refuse

if TYPE_CHECKING:
    from tww_ros.node.node import TwwNode

# Behind every stamp.
FOR_EVER_NS = 2**63 - 1


class Services:
    """Serves them on a node."""

    def __init__(self, node: TwwNode, bell: Bell) -> None:
        self._node = node
        self._bell = bell
        self._room = node.room
        # Reentrant: a save that takes a minute keeps nobody else out.
        group = ReentrantCallbackGroup()
        for kind, name, serve in (
                (SaveMemory, 'save_memory', self._save),
                (LoadMemory, 'load_memory', self._load),
                (ClearMemory, 'clear_memory', self._clear),
                (ListSegments, 'list_segments', self._list),
                (CloseSession, 'close_session', self._close_session)):
            node.create_service(kind, f'~/{name}', self._guarded(name, serve),
                                callback_group=group)
        node.create_service(GetStatus, '~/get_status', self._get_status, callback_group=group)
        node.create_service(SetBool, '~/enable_ingest', self._enable_ingest, callback_group=group)

    def _guarded(self, name: str, serve: Any) -> Any:
        async def call(request: Any, response: Any) -> Any:
            try:
                await serve(request, response)
            except Exception as error:
                refuse(response, error, self._node.get_logger(), f'{name} refused')
            return response
        return call

    async def _save(self, request: SaveMemory.Request, response: SaveMemory.Response) -> None:
        folder = await self._bell.work(_folder, request.folder)
        memory = self._node.running_engine().memory
        with self._room.alone('memory is being saved'):
            response.segments = len(memory)
            await self._bell.work(_save, memory, folder)
        response.folder = ros_string(str(folder))
        self._node.get_logger().info(f'{response.segments} segments were saved to {folder}')

    async def _load(self, request: LoadMemory.Request, response: LoadMemory.Response) -> None:
        folder = await self._bell.work(_folder, request.folder)
        self._node.running_engine()
        if self._node.questions_active:
            raise BusyError(f'{self._node.questions_active} questions are being answered from the '
                            'present memory; wait for them or cancel them, then load')
        response.segments = await self._room.replace(str(folder))
        self._node.get_logger().info(f'going on with {response.segments} segments from {folder}')

    async def _clear(self, request: ClearMemory.Request, response: ClearMemory.Response) -> None:
        memory = self._node.running_engine().memory
        with self._room.alone('memory is being cleared'):
            response.segments = await self._bell.work(
                memory.clear, from_time(request.before) or FOR_EVER_NS)
        self._node.get_logger().info(f'{response.segments} segments were forgotten')

    async def _list(self, request: ListSegments.Request, response: ListSegments.Response) -> None:
        memory, cameras = self._node.running_engine().memory, self._node.parameters.cameras
        for camera in request.cameras:
            if camera not in cameras:
                raise UnknownCameraError(f'no camera {camera!r}; this node watches '
                                         f'{", ".join(cameras)}')
        window = window_from(request.window_start, request.window_end)
        response.segments = await self._bell.work(_list, memory, set(request.cameras), window,
                                                  request.limit)

    async def _close_session(self, request: CloseSession.Request,
                             response: CloseSession.Response) -> None:
        self._node.running_engine().close_session(request.session_id or DEFAULT_SESSION)

    def _get_status(self, request: GetStatus.Request,
                    response: GetStatus.Response) -> GetStatus.Response:
        response.status = self._node.status()
        return response

    def _enable_ingest(self, request: SetBool.Request,
                       response: SetBool.Response) -> SetBool.Response:
        self._node.cameras.watching = request.data
        response.success = True
        response.message = 'watching' if request.data else 'images are received and thrown away'
        self._node.get_logger().info(f'ingest: {response.message}')
        return response


def _folder(name: str) -> Path:
    """Its full path; looks at the disk, which may be slow."""
    if not name.strip():
        raise StoreError('the folder is empty; expected its path on the machine of the node')
    try:
        return Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreError(f'{name!r} is no folder: {error}; give its full path on the machine of '
                         'the node') from error


def _save(memory: Any, folder: Path) -> None:
    try:
        memory.save(folder)
    except OSError as error:
        raise StoreError(f'memory could not be written to {folder}: {error}; choose a folder that '
                         'the node may write to') from error


def _list(memory: Any, cameras: set[str], window: tuple[int, int] | None,
          limit: int) -> list[messages.SegmentInfo]:
    found = [info for info in memory.segments()
             if (not cameras or info.camera in cameras)
             and (window is None or (info.end_ns >= window[0] and info.start_ns <= window[1]))]
    return [segment_message(info) for info in (found[-limit:] if limit else found)]
