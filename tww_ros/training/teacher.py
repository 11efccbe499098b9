"""Notes and reasonings from a larger model, over any OpenAI-compatible chat-completions endpoint.

In: what was there at one moment. Out: a line of text. A note is asked for with its segment's
frames and the notes before it; a reasoning with the notes so far, the question and its answer.
The caller hands over nothing later, and a reply that cites a later time is sent back.

Every reply is kept in a file named after the whole request, so that a run that stopped asks only
for what it has not got. The API key is read from $TWW_TEACHER_KEY and stored nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tww_ros.errors import DatasetError
from tww_ros.training.checks import late_times
from tww_ros.training.fields import load_json, shown
from tww_ros.world.notes import NOTHING_NEW

KEY_VARIABLE = 'TWW_TEACHER_KEY'
_NOTE_TASK = (
    'You watch a camera, segment by segment, and keep notes for somebody who will be asked about '
    'the video later and will not see it again. Write one short note in one line about what is '
    'new in the newest frames: what happened, to whom or what, where, and when ("at 12 s"). Tell '
    f'only what can be seen. If nothing is new, write exactly: {NOTHING_NEW}')
_REASONING_TASK = (
    'Somebody who has only the notes below is asked a question about the video so far. Write in '
    'one line, as short as can be, what in the notes leads to the given answer: copy the parts of '
    'notes that matter, joined by "; ". Use nothing that the notes do not say. If they do not say '
    'it, write exactly: seen now')
_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
_THOUGHT = re.compile(r'<think>.*?</think>', re.DOTALL)
_MEDIA = {'.jpg': 'image/jpeg', '.png': 'image/png'}


class Teacher:
    """Asks one model at one endpoint; replies are cached in a folder."""

    def __init__(self, url: str, model: str, cache: Path, *, timeout_s: float = 120.0,
                 attempts: int = 6, backoff_s: float = 2.0) -> None:
        """url: up to and with /v1. Waits backoff_s, twice that, … between attempts."""
        if not url.startswith(('http://', 'https://')):
            raise DatasetError(f'--teacher: expected http://host:port/v1, got {url!r}')
        if not model:
            raise DatasetError('--teacher-model: expected the name of a model, got none')
        self._url = url.rstrip('/') + '/chat/completions'
        self.model = model
        self._cache = cache
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._backoff_s = backoff_s

    def note(self, frames: Sequence[tuple[float, Path]], earlier: Sequence[tuple[float, str]],
             end_s: float) -> str:
        """The note of a segment that ended at end_s. frames: (time, picture file) of the segment;
        earlier: (end, note) of the segments before. Raises DatasetError."""
        content = [_text(f'{_told(earlier)}\n\nThe newest frames:')]
        for stamp_s, path in frames:
            data = base64.b64encode(path.read_bytes()).decode()
            content += [_text(f'at {stamp_s:.1f} s'), {'type': 'image_url', 'image_url': {
                'url': f'data:{_MEDIA[path.suffix]};base64,{data}'}}]
        note = self._ask(_NOTE_TASK, content, end_s).removeprefix('Note:').strip()
        return NOTHING_NEW if note.rstrip('.').lower() == NOTHING_NEW else note

    def reasoning(self, notes: Sequence[tuple[float, str]], question: str,
                  choices: Sequence[str], answer: str, at_s: float) -> str:
        """Why the answer is right at at_s. notes: (end, note) of the segments closed by then."""
        options = f'\nOptions: {"; ".join(choices)}' if choices else ''
        content = [_text(f'{_told(notes)}\n\nAsked at {at_s:.1f} s: {question}{options}\n'
                         f'Answer: {answer}')]
        return self._ask(_REASONING_TASK, content, at_s).removeprefix('Reasoning:').strip()

    def _ask(self, task: str, content: list[dict[str, Any]], until_s: float) -> str:
        """One line that cites no time after until_s."""
        messages: list[dict[str, Any]] = [{'role': 'system', 'content': task},
                                          {'role': 'user', 'content': content}]
        for _ in range(3):
            reply = self._reply(messages)
            line = ' '.join(_THOUGHT.sub(' ', reply).split())
            late = late_times(line, until_s)
            if line and not late:
                return line
            trouble = (f'You cite {late[0]}, but it is only {until_s:.1f} s now.' if late else
                       'That was empty.')
            messages += [{'role': 'assistant', 'content': reply},
                         {'role': 'user', 'content': f'{trouble} Write the line again.'}]
        raise DatasetError(f'teacher {self.model}: expected a line that cites no time after '
                           f'{until_s:g} s, got {line!r} three times; try another model')

    def _reply(self, messages: list[dict[str, Any]]) -> str:
        body = json.dumps({'model': self.model, 'messages': messages, 'temperature': 0,
                           'max_tokens': 1_024}).encode()
        kept = self._cache / f'{hashlib.sha256(body).hexdigest()}.json'
        if kept.exists():
            return load_json(kept.read_text(encoding='utf-8'), str(kept))['reply'].text(empty=True)
        answer = load_json(self._post(body), f'teacher {self._url}')
        choices = answer['choices'].items()
        if not choices:
            answer['choices'].fail('one choice')
        reply = choices[0]['message']['content'].text(empty=True)
        self._cache.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix('.tmp')
        partial.write_text(json.dumps({'reply': reply}, ensure_ascii=False), encoding='utf-8')
        os.replace(partial, kept)
        return reply

    def _post(self, body: bytes) -> str:
        headers = {'Content-Type': 'application/json'}
        if key := os.environ.get(KEY_VARIABLE):
            headers['Authorization'] = f'Bearer {key}'
        request = urllib.request.Request(self._url, body, headers)
        trouble = ''
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._backoff_s * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                    return response.read().decode('utf-8', 'replace')
            except urllib.error.HTTPError as error:
                words = shown(error.read(2_000).decode('utf-8', 'replace'), 200)
                trouble = f'HTTP {error.code} {words}'
                if error.code not in _RETRIED:
                    hint = (f'set {KEY_VARIABLE}' if error.code in (401, 403) else
                            'check --teacher and --teacher-model')
                    raise DatasetError(f'teacher {self._url}: expected a chat completion, got '
                                       f'{trouble}; {hint}') from error
            # A refused connection, a timeout, or an answer that broke off.
            except (OSError, http.client.HTTPException) as error:
                trouble = str(getattr(error, 'reason', '') or error) or type(error).__name__
        raise DatasetError(f'teacher {self._url}: expected a chat completion, got {trouble} '
                           f'{self._attempts} times; run the command again with --resume when it '
                           'answers, nothing done so far is lost')


def _text(text: str) -> dict[str, Any]:
    return {'type': 'text', 'text': text}


def _told(notes: Sequence[tuple[float, str]]) -> str:
    lines = [f'up to {end_s:.1f} s: {note}' for end_s, note in notes if note != NOTHING_NEW]
    return 'Notes so far:\n' + ('\n'.join(lines) or 'none')
