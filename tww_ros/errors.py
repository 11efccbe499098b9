"""The one exception tree of the package.

    TwwError
    ├── ConfigError          a setting is out of range, unknown, or contradicts another
    ├── ModelError           a checkpoint is missing, of another kind, or fails its self-test
    ├── FrameError           one image is malformed; the stream goes on
    ├── QuestionError        one question cannot be answered as asked; the engine goes on
    │   ├── QuestionTooLongError   it has more tokens than are read
    │   ├── UnknownCameraError     it names a camera that has never sent a frame
    │   ├── UnknownSessionError    it closes or continues a session that does not exist
    │   ├── NothingSeenError       it was asked before the first frame entered memory
    │   └── BusyError              too many questions are already waiting
    ├── CancelledError       the caller cancelled the question
    ├── AnswerTimeoutError   the question's own time limit passed
    ├── EngineClosedError    the engine is not running
    ├── StoreError           a memory on disk cannot be opened, read or written
    ├── ReplayError          a bag or a video cannot be read, written or published
    ├── DatasetError         a data set is malformed, or tells what comes later
    ├── TrainingError        a training run cannot go on
    └── EvaluationError      a model cannot be measured as planned

Every message says what was expected, what was got, and what to do next.
"""


class TwwError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(TwwError):
    """A setting is out of range, unknown, or contradicts another."""


class ModelError(TwwError):
    """A checkpoint cannot be found, is of another architecture, or fails its self-test."""


class FrameError(TwwError):
    """One image is malformed; the stream goes on without it."""


class QuestionError(TwwError):
    """One question cannot be answered as asked; the engine goes on."""


class QuestionTooLongError(QuestionError):
    """The question has more tokens than are read."""


class UnknownCameraError(QuestionError):
    """The question names a camera that has never sent a frame."""


class UnknownSessionError(QuestionError):
    """The call closes a session that does not exist."""


class NothingSeenError(QuestionError):
    """The question was asked before the first frame entered memory."""


class BusyError(QuestionError):
    """Too many questions are already waiting."""


class CancelledError(TwwError):
    """The caller cancelled the question."""


class AnswerTimeoutError(TwwError):
    """The question's own time limit passed before the answer was complete."""


class EngineClosedError(TwwError):
    """The engine is not running: it was closed, or never started."""


class StoreError(TwwError):
    """A memory on disk cannot be opened, read or written, or does not hold what was asked for."""


class ReplayError(TwwError):
    """A bag or a video cannot be read, written or published."""


class DatasetError(TwwError):
    """A data set is malformed, or its notes and answers use what comes later."""


class TrainingError(TwwError):
    """A training run cannot go on."""


class EvaluationError(TwwError):
    """A model cannot be measured as planned."""
