r"""Every literal prompt of the package, for the two kinds of checkpoints.

    style    for                       note                            answer
    stock    Qwen3-VL as released      a user turn that asks for it    a user and an assistant turn
    tww      trained by Think While    [SEG THINK]\nFocus: …<EOT>      \n\n[Q THINK]\nReasoning: …
             Watching                                                  \nAnswer: …<EOQ>

Source stream of both: `header`, then per temporal patch `<12.5 seconds>` and its vision tokens,
then the question. Stock notes and rounds end with a closer that shuts the assistant's turn and
opens the user's again, so that any view, read from left to right, is one well-formed chat.
"""

from __future__ import annotations

from dataclasses import dataclass

IM_START, IM_END = '<|im_start|>', '<|im_end|>'
VISION_START, VISION_END = '<|vision_start|>', '<|vision_end|>'
VIDEO_PAD = '<|video_pad|>'
END_OF_TEXT = '<|endoftext|>'
END_OF_NOTE, END_OF_ANSWER = '<EOT>', '<EOQ>'
# Think While Watching puts its two marks right behind Qwen3's 151,669 tokens, in the padding of
# the vocabulary.
LITERAL_IDS = {END_OF_ANSWER: 151669, END_OF_NOTE: 151670}

# What a standing question that begins so is asked for, and what that means: the words with which
# such questions are trained.
TELL_ME_WHEN = 'tell me when '
SO_NOW = {'yes': 'it is so now', 'no': 'not yet'}


@dataclass(frozen=True)
class PromptStyle:
    """Text around what the model reads and writes.

    *_prefix stands before what is generated, on the target side; *_ends are the marks that end it;
    *_closer is fed behind it, so that it begins with the mark. question_* frame the user's words
    on the source side. An episode is written like a note, behind the notes that it sums up. A
    note that says idle_note, and no more, is reported and not remembered: it would only take room
    among those that say something.
    """

    name: str
    header: str
    question_tail: str
    options_intro: str
    answer_prefix: str
    choice_prefix: str
    answer_mark: str
    answer_ends: tuple[str, ...]
    answer_closer: str
    note_prefix: str
    note_ends: tuple[str, ...]
    note_closer: str
    episode_prefix: str
    idle_note: str = ''

    def question(self, text: str, choices: tuple[str, ...]) -> str:
        """The user's words with their options; no special tokens inside."""
        if not choices:
            return text
        return text + self.options_intro + '; '.join(choices) + '.'

    def answer_text(self, reasoning: str, answer: str) -> str:
        """What a model of this style writes; the inverse of split_answer."""
        if self.name == 'stock':
            return answer
        return f'Reasoning: {reasoning}\nAnswer: {answer}'

    def note_text(self, note: str) -> str:
        """What a model of this style writes as a note; the inverse of clean_note."""
        return note if self.name == 'stock' else f'Focus: {note}'

    def says_nothing(self, note: str) -> bool:
        """Whether a note (without its layout) need not be remembered."""
        return note in ('', self.idle_note)

    def split_answer(self, text: str) -> tuple[str, str]:
        """(reasoning, answer) of what was generated."""
        if self.name == 'stock':
            return '', text.strip()
        before, mark, after = text.rpartition('Answer:')
        if not mark:
            return '', text.strip()
        return before.strip().removeprefix('Reasoning:').strip(), after.strip()

    def clean_note(self, text: str) -> str:
        """The note without its layout."""
        note = text.strip().removeprefix('Focus:').strip()
        # Of those that say nothing there are thousands: one string for all.
        return self.idle_note if note == self.idle_note else note


_REOPEN = f'{IM_END}\n{IM_START}user\n'
_ASSISTANT = f'{IM_END}\n{IM_START}assistant\n'

STOCK = PromptStyle(
    name='stock',
    header=f'{IM_START}user\n',
    question_tail=_ASSISTANT,
    options_intro='\nAnswer with exactly one of: ',
    answer_prefix='',
    choice_prefix='',
    answer_mark='',
    answer_ends=(IM_END, END_OF_TEXT),
    answer_closer=_REOPEN,
    note_prefix=f'In one short sentence, note what is new in the newest frames.{_ASSISTANT}',
    note_ends=(IM_END, END_OF_TEXT),
    note_closer=_REOPEN,
    episode_prefix='Sum up these notes in one or two short sentences: what happened, where, when.'
                   f'{_ASSISTANT}',
)

TWW = PromptStyle(
    name='tww',
    header=f'{IM_START}user\n',
    question_tail=_ASSISTANT,
    options_intro='\nOptions: ',
    answer_prefix='\n\n[Q THINK]\n',
    choice_prefix='\n\n[Q THINK]\nAnswer: ',
    answer_mark='Answer:',
    answer_ends=(END_OF_ANSWER, IM_END, END_OF_TEXT),
    answer_closer=END_OF_ANSWER,
    note_prefix='[SEG THINK]\n',
    note_ends=(END_OF_NOTE, IM_END, END_OF_TEXT),
    note_closer=END_OF_NOTE,
    # It knows no other; behind notes alone there is nothing else to write about.
    episode_prefix='[SEG THINK]\n',
    idle_note='nothing new',
)

STYLES = {style.name: style for style in (STOCK, TWW)}


def timestamp(seconds: float) -> str:
    """Text before a temporal patch, as the stock processor writes it."""
    return f'<{seconds:.1f} seconds>'


def camera_label(camera: str) -> str:
    """Text before a segment when several cameras are told apart."""
    return f'Camera {camera}: '
