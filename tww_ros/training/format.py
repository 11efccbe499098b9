"""One sample of a data set as JSON: the Think While Watching reference's keys, and ours.

In: an Entry. Out: the dictionary of its data_000000.json; and back. What a reader of the reference
format needs is where it expects it; all else is under `metadata.tww`, which such a reader ignores.
`docs/training.md` explains every key.

Reading is strict: whatever is missing, of another type or contradicts another key is a
DatasetError that names the file and the place in it. Whether a sample uses what comes later is
for `training.checks`. Nothing here opens a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tww_ros.training.fields import Field, load_json, shown

VERSION = 1
# Times are compared with this slack; the reference rounds some of its own.
SLACK_S = 1e-6
LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
_VIDEO_MARK = '<video>\n'
_ANSWER_MARK = 'Answer:'
# These would end a note or an answer in the midst of it.
_MARKS = ('<|', '<EOT>', '<EOQ>')


@dataclass(frozen=True)
class EntrySegment:
    """Frames (their times in the stream) and the note; start_s is where the one before ended."""

    start_s: float
    end_s: float
    stamps_s: tuple[float, ...]
    note: str | None = None


@dataclass(frozen=True)
class EntryQuestion:
    """A round; after: closed segments when it is asked; noted: those with a finished note.

    proof: segments that hold what is needed; empty when the newest frames (or nothing) do.
    """

    at_s: float
    after: int
    noted: int
    text: str
    answer: str
    reasoning: str = ''
    choices: tuple[str, ...] = ()
    session: str = 'default'
    family: str = ''
    kind: str = ''
    proof: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """Everything in one file. stage: 1 to 3, or 0 without our keys. Sizes: (width, height) px.

    simulated: what the tabletop needs to make the same again; None for real videos.
    """

    index: int
    stage: int
    dataset: str
    video: str
    is_image_sequence: bool
    frames_path: str
    frame_files: tuple[str, ...]
    original_size_px: tuple[int, int]
    size_px: tuple[int, int]
    duration_s: float
    video_fps: float
    sample_fps: float
    segments: tuple[EntrySegment, ...]
    questions: tuple[EntryQuestion, ...]
    simulated: dict[str, Any] | None = None


def file_name(index: int) -> str:
    """'data_000012.json'."""
    return f'data_{index:06d}.json'


def document(entry: Entry) -> dict[str, Any]:
    """The JSON object of an entry."""
    stamps = [stamp for segment in entry.segments for stamp in segment.stamps_s]
    metadata = {
        'dataset': entry.dataset,
        'timestamps': [question.at_s for question in entry.questions],
        'original_resolution': list(entry.original_size_px),
        'normalized_resolution': list(entry.size_px),
        'video_duration': entry.duration_s,
        'video_fps': entry.video_fps,
        'sample_fps': entry.sample_fps,
        'num_frames': len(stamps),
        'frame_files': list(entry.frame_files),
        'sample_timestamps': stamps,
        'segment_info': [{'start': segment.start_s, 'end': segment.end_s,
                          'num_frames': len(segment.stamps_s)} for segment in entry.segments],
        'is_image_sequence': entry.is_image_sequence,
        'frames_path': entry.frames_path,
        'index': entry.index,
        'original_questions': [{'question': question.text, 'options': options(question),
                                'answer': short_answer(question)}
                               for question in entry.questions],
    }
    if entry.stage:
        metadata['tww'] = _own(entry)
    return {'video': entry.video, 'conversations': list(_conversations(entry)),
            'metadata': metadata}


def options(question: EntryQuestion) -> list[str]:
    """The choices with their letters: 'A. a person is cooking'."""
    return [f'{LETTERS[number]}. {text}' for number, text in enumerate(question.choices)]


def short_answer(question: EntryQuestion) -> str:
    """The letter of the right choice, or the answer to an open question."""
    if question.choices:
        return LETTERS[question.choices.index(question.answer)]
    return question.answer


def human_value(question: EntryQuestion, first: bool) -> str:
    """What the reference's 'human' says."""
    return (_VIDEO_MARK if first else '') + '\n'.join([question.text, *options(question)])


def gpt_value(question: EntryQuestion) -> str:
    """What the reference's 'gpt' says."""
    answer = f'{_ANSWER_MARK} {short_answer(question)}'
    return f'{question.reasoning}\n{answer}' if question.reasoning else answer


def parse(text: str, file: str) -> Entry:
    """The entry of a file's text. Raises DatasetError."""
    root = load_json(text, file)
    video, metadata = root['video'].text(), root['metadata']
    index = metadata['index'].whole()
    if file_name(index) != file and file.startswith('data_'):
        metadata['index'].fail(f'{file.removeprefix("data_").removesuffix(".json")}, as the '
                               'file is called')
    is_sequence = metadata['is_image_sequence'].flag()
    duration_s = metadata['video_duration'].number(low=0)
    segments = _segments(metadata, duration_s)
    rounds = list(_rounds(root['conversations']))
    questions = _questions(metadata, rounds, duration_s)
    stage, simulated = 0, None
    if 'tww' in metadata:
        own = metadata['tww']
        if own['version'].whole() != VERSION:
            own['version'].fail(f'{VERSION}', hint='install the tww_ros that made it')
        stage = own['stage'].whole(low=1, high=3)
        notes = own['segments'].items(len(segments), 'as in metadata.segment_info')
        segments = [EntrySegment(segment.start_s, segment.end_s, segment.stamps_s,
                                 said(told['note']))
                    for segment, told in zip(segments, notes, strict=True)]
        told = own['questions'].items(len(questions), 'as in metadata.original_questions')
        questions = [_own_question(*pair) for pair in zip(questions, told, strict=True)]
        if 'tabletop' in own:
            simulated = own['tabletop'].mapping()
    else:
        questions = [_reference_question(question, answer, segments)
                     for question, (_, answer) in zip(questions, rounds, strict=True)]
    entry = Entry(
        index=index, stage=stage, dataset=metadata['dataset'].text(), video=video,
        is_image_sequence=is_sequence, frames_path=_path(metadata['frames_path']),
        frame_files=tuple(_frame_name(name) for name in metadata['frame_files'].items()),
        original_size_px=_size(metadata['original_resolution']),
        size_px=_size(metadata['normalized_resolution']), duration_s=duration_s,
        video_fps=metadata['video_fps'].number(low=0),
        sample_fps=metadata['sample_fps'].number(low=0), segments=tuple(segments),
        questions=tuple(questions), simulated=simulated)
    if stage:
        for number, (question, turns) in enumerate(zip(questions, rounds, strict=True)):
            for field, value in zip(turns, (human_value(question, number == 0),
                                           gpt_value(question)), strict=True):
                if field['value'].text() != value:
                    field['value'].fail(f'{value!r}, as metadata.tww.questions[{number}] has it')
    return entry


def _own(entry: Entry) -> dict[str, Any]:
    own: dict[str, Any] = {
        'version': VERSION, 'stage': entry.stage,
        'segments': [{'note': segment.note} for segment in entry.segments],
        'questions': [{
            'session': question.session, 'after': question.after,
            'notes_visible': question.noted, 'question': question.text,
            'choices': list(question.choices), 'reasoning': question.reasoning,
            'answer': question.answer, 'family': question.family, 'kind': question.kind,
            'proof': list(question.proof)} for question in entry.questions],
    }
    if entry.simulated is not None:
        own['tabletop'] = entry.simulated
    return own


def _conversations(entry: Entry) -> Iterator[dict[str, Any]]:
    for number, question in enumerate(entry.questions):
        yield {'from': 'human', 'timestamps': question.at_s,
               'value': human_value(question, number == 0)}
        yield {'from': 'gpt', 'value': gpt_value(question)}


def _segments(metadata: Field, duration_s: float) -> list[EntrySegment]:
    count = metadata['num_frames'].whole(low=1)
    metadata['frame_files'].items(count, 'as metadata.num_frames says')
    stamps: list[float] = []
    for place in metadata['sample_timestamps'].items(count, 'as metadata.num_frames says'):
        stamp = place.number(low=0)
        if stamps and not stamp > stamps[-1]:
            place.fail(f'a time after {stamps[-1]:g} s, the one before')
        if stamp > duration_s + SLACK_S:
            place.fail(f'a time within video_duration, {duration_s:g} s')
        stamps.append(stamp)
    segments: list[EntrySegment] = []
    taken = 0
    for place in metadata['segment_info'].items():
        start_s, end_s = place['start'].number(low=0), place['end'].number(low=0)
        frames = place['num_frames'].whole(low=1)
        if segments and abs(start_s - segments[-1].end_s) > SLACK_S:
            place['start'].fail(f'{segments[-1].end_s:g}, where the segment before ends')
        if end_s < start_s:
            place['end'].fail(f'a time of at least its start, {start_s:g} s')
        if end_s > duration_s + SLACK_S:
            place['end'].fail(f'a time within video_duration, {duration_s:g} s')
        own = stamps[taken:taken + frames]
        if len(own) < frames:
            place['num_frames'].fail(f'at most {len(own)}, the frames that are left')
        for number, stamp in enumerate(own, start=taken):
            if not start_s - SLACK_S <= stamp <= end_s + SLACK_S:
                metadata['sample_timestamps'].items()[number].fail(
                    f'a time within {place.path}, {start_s:g} to {end_s:g} s')
        taken += frames
        segments.append(EntrySegment(start_s, end_s, tuple(own)))
    if taken != count:
        metadata['segment_info'].fail(f'segments of {count} frames together', got=f'{taken}')
    return segments


def _rounds(conversations: Field) -> Iterator[tuple[Field, Field]]:
    turns = conversations.items()
    if not turns or len(turns) % 2:
        conversations.fail('turns of human and gpt in pairs', got=f'{len(turns)} turns')
    for human, gpt in zip(turns[::2], turns[1::2], strict=True):
        for turn, who in ((human, 'human'), (gpt, 'gpt')):
            if turn['from'].text() != who:
                turn['from'].fail(f'{who!r}')
            turn['value'].text()
        yield human, gpt


def _questions(metadata: Field, rounds: list[tuple[Field, Field]], duration_s: float
               ) -> list[EntryQuestion]:
    """Questions as the reference's keys have them; session, notes and proofs are not known."""
    count = len(rounds)
    times = metadata['timestamps'].items(count, 'one for each round of conversations')
    told = metadata['original_questions'].items(count, 'one for each round of conversations')
    questions: list[EntryQuestion] = []
    for time, place, (human, gpt) in zip(times, told, rounds, strict=True):
        at_s = human['timestamps'].number(low=0)
        if at_s > duration_s + SLACK_S:
            human['timestamps'].fail(f'a time within video_duration, {duration_s:g} s')
        if questions and at_s < questions[-1].at_s:
            human['timestamps'].fail(f'a time not before {questions[-1].at_s:g} s, the round '
                                     'before')
        if time.number() != at_s:
            time.fail(f'{at_s:g}, as {human.path}.timestamps')
        choices = _choices(place['options'])
        answer = place['answer'].text()
        letters = LETTERS[:len(choices)]
        if choices and (len(answer) != 1 or answer not in letters):
            place['answer'].fail(f'one of the letters of its options, {", ".join(letters)}')
        before, mark, after = gpt['value'].text().rpartition(_ANSWER_MARK)
        if not mark or after.strip() != answer:
            gpt['value'].fail(f'a text that ends with "{_ANSWER_MARK} {answer}", as '
                              f'{place.path}.answer')
        questions.append(EntryQuestion(
            at_s, 0, 0, place['question'].text(),
            choices[letters.index(answer)] if choices else answer,
            reasoning=before.strip(), choices=choices))
    return questions


def _choices(place: Field) -> tuple[str, ...]:
    choices: list[str] = []
    for number, option in enumerate(place.items()):
        letter = LETTERS[number] if number < len(LETTERS) else None
        if letter is None:
            place.fail(f'at most {len(LETTERS)} options', got=f'{len(place.items())}')
        text = option.text().removeprefix(f'{letter}.').strip()
        if not option.text().startswith(f'{letter}.') or not text:
            option.fail(f'a text that starts with "{letter}. "')
        if text in choices:
            option.fail('options that differ from each other')
        choices.append(text)
    if len(choices) == 1:
        place.fail('at least two options, or none for an open question', got='1')
    return tuple(choices)


def _own_question(base: EntryQuestion, told: Field) -> EntryQuestion:
    """The question with our keys; those of the reference must say the same."""
    choices = tuple(place.text() for place in told['choices'].items())
    answer = said(told['answer'])
    if choices and answer not in choices:
        told['answer'].fail(f'one of its choices, {", ".join(choices)}')
    if _ANSWER_MARK in answer:
        told['answer'].fail(f'an answer without {_ANSWER_MARK!r} in it')
    for key, mine, theirs in (('question', told['question'].text(), base.text),
                              ('choices', choices, base.choices),
                              ('answer', answer, base.answer)):
        if mine != theirs:
            told[key].fail(f'{shown(theirs)}, as metadata.original_questions has it')
    return EntryQuestion(
        base.at_s, told['after'].whole(), told['notes_visible'].whole(), base.text, answer,
        reasoning=said(told['reasoning'], empty=True), choices=choices,
        session=told['session'].text(), family=told['family'].text(empty=True),
        kind=told['kind'].text(empty=True),
        proof=tuple(place.whole() for place in told['proof'].items()))


def _reference_question(question: EntryQuestion, gpt: Field, segments: list[EntrySegment]
                        ) -> EntryQuestion:
    """Without our keys a question sees the segments that were closed by its time."""
    said(gpt['value'])
    after = closed_by(segments, question.at_s)
    return EntryQuestion(question.at_s, after, after, question.text, question.answer,
                         reasoning=question.reasoning, choices=question.choices)


def closed_by(segments: list[EntrySegment] | tuple[EntrySegment, ...], at_s: float) -> int:
    """How many segments have ended at a time."""
    return sum(segment.end_s <= at_s + SLACK_S for segment in segments)


def said(place: Field, empty: bool = False) -> str:
    """A text that a model is taught to write: without the marks that mean something to it."""
    text = place.text(empty)
    for mark in _MARKS:
        if mark in text:
            place.fail(f'a text without {mark!r}, which means something to a model')
    return text


def _size(place: Field) -> tuple[int, int]:
    width, height = (side.whole(low=1) for side in place.items(2, 'width and height'))
    return width, height


def _path(place: Field) -> str:
    path = PurePosixPath(place.text())
    if path.is_absolute() or '..' in path.parts:
        place.fail('a folder within the data set')
    return place.value


def _frame_name(place: Field) -> str:
    name = place.text()
    if PurePosixPath(name).name != name or name == '..':
        place.fail('the name of a file in metadata.frames_path')
    return name
