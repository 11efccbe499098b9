"""Quantized keys and values: how much smaller, and what it does to answers, by bits and scheme.

In: a Report. Out: metrics kv_<model>_<bits>bit_<scheme>_<what>. A model watches tabletop streams
and answers open questions with memory in full precision; then the same questions are answered
again, word for word, over memories whose segments (all of them, the newest too) are quantized.

    scheme             keys                                    values
    turned             `tww_ros.memory.quantization`           the same
    channel_token      a range per channel and 32 tokens       a range per token and 32 channels
    token_token, channel_channel, before_token, before_channel: likewise; `before`: per channel,
                       before the rotation by position, which the block would have to know
    recent             `turned`, but for the newest RECENT segments: nearer to what the engine does

    what               meaning
    bits_a_number      all that is held, scales too, for each key and value
    times_smaller      than bfloat16
    attention_error    of what attention gives, all layers: |o' − o| / |o|, inputs exact
    divergence_nats    of the distributions of the answers' tokens: mean KL(full ‖ quantized)
    tokens_agree       share of tokens that stay the likeliest
    answers_agree      share of answers, reasoning and end mark included, that stay as they are

Ranges are KIVI's (arXiv 2402.02750): minimum and maximum, float16, even steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from _report import Report

import tww_ros
from tww_ros import Engine, EngineConfig, Frame, Question, load_model
from tww_ros.engine.answering import question_ids
from tww_ros.evaluation.protocol import CAMERA, Protocol, plan_streams
from tww_ros.evaluation.runner import OFFLINE, PATIENCE_S
from tww_ros.memory.block import KVBlock
from tww_ros.memory.quantization import BITS, Block, QuantScheme, quantize
from tww_ros.memory.view import Part, View
from tww_ros.model.attention import choose_backend
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.model.planning import StepPlan, plan_step
from tww_ros.model.positions import MRope, rotate
from tww_ros.model.run import Span, TokenRun
from tww_ros.types import NS_PER_S
from tww_ros.world.render import Renderer

EMBEDDED = Path(tww_ros.__file__).parent / 'model' / 'embedded' / 'config.json'
# tiny-random brings no settings; with these its segments are as short as the embedded model's.
TINY = {'watch.sample_fps': 1.0, 'watch.segment_s': 2.0, 'watch.min_pixels': 9_216,
        'watch.max_pixels': 9_216, 'memory.resident_tokens': 512, 'note.max_new_tokens': 8}
QUICK = Protocol(seed=11, questions=10, streams=1, segments=24, moments=2)
FULL = Protocol(seed=11, questions=400, streams=8, segments=60, moments=3)
ANSWER_TOKENS = 32
SPANS_A_STEP = 40
# Questions of which attention is compared.
ERRORS_OF = 8
RECENT = 2
GROUP = 32
RANGES = tuple((key, value) for key in ('channel', 'token', 'before')
               for value in ('token', 'channel'))
Blocks = Mapping[int, Block]


@dataclass
class Seen:
    """A block with what was appended to it; `segment`: whether there is video in it."""

    block: KVBlock
    view: View
    ids: list[int] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    segment: bool = False


@dataclass(frozen=True)
class Asked:
    """One question: what memory it saw, its tokens, and the answer behind the study's prefix."""

    memory: View
    question: tuple[int, ...]
    answer: tuple[int, ...]
    start: int


@dataclass
class Study:
    """What one model saw and was asked.

    segments: by id() of their blocks, those that a question attended to. prefix: what an answer
    begins with, if that is not a part of the question.
    """

    model: VideoLanguageModel
    asked: list[Asked]
    segments: dict[int, Seen]
    prefix: list[int]


def measure_kv(report: Report, quick: bool) -> None:
    """Everything for tiny-random, and for the embedded model where there is one."""
    measure_model(report, 'tiny-random', load_model('tiny-random'), quick)
    if EMBEDDED.is_file():
        measure_model(report, 'embedded', load_model('embedded'), quick)
        # Only a trained model has answers that mean anything.
        report.target('kv_embedded_3bit_recent_answers_agree', '>=', 0.99)


@torch.inference_mode()
def measure_model(report: Report, name: str, model: VideoLanguageModel, quick: bool) -> None:
    """All schemes for one model."""
    config = EngineConfig.from_flat({**(model.settings or TINY), **OFFLINE})
    study = watch(model, config, QUICK if quick else FULL)
    exact = answer(study, {})
    prefix, versions = f'kv_{name.replace("-", "_")}', {}
    for bits, scheme, blocks, bits_a_number in schemes(study):
        label = f'{prefix}_{bits}bit_{scheme}'
        # The same numbers in full precision: all questions of a step would dequantize them anew.
        blocks = versions[label] = {key: twin(block) for key, block in blocks.items()}
        report.add(f'{label}_bits_a_number', bits_a_number)
        report.add(f'{label}_times_smaller', 16 / bits_a_number)
        for what, value in compare(exact, answer(study, blocks)).items():
            report.add(f'{label}_{what}', value)
    for label, error in attention_errors(study, versions).items():
        report.add(f'{label}_attention_error', error)
    for bits in (16, *BITS):
        blocks = {} if bits == 16 else turned(study, bits)
        report.add(f'{prefix}_{bits}bit_step_ms', step_ms(study, blocks))
    report.target(f'{prefix}_3bit_turned_times_smaller', '>=', 5.02)


# What there is to answer

def watch(model: VideoLanguageModel, config: EngineConfig, protocol: Protocol) -> Study:
    """Streams through the real engine; every step is listened to."""
    seen: dict[int, Seen] = {}
    asked: list[Asked] = []
    prefix = model.encode(model.style.answer_prefix)
    # On one axis of positions the engine computes it in the question's run.
    joined = prefix if model.scheme == 'continuous' else []
    step = model.step

    def listen(spans: list[Span]) -> list[torch.Tensor | None]:
        for span in spans:
            known = seen.setdefault(id(span.block), Seen(span.block, span.view))
            known.ids += span.run.ids
            known.positions.append(span.run.positions)
            known.segment |= span.run.visual is not None
        return step(spans)

    model.step = listen
    try:
        for plan in plan_streams(protocol, config.watch, model.temporal_patch_size):
            renderer, fed = Renderer(plan.episode, plan.size_px), 0
            with Engine(model, config) as engine:
                for moment in plan.moments:
                    for stamp_ns in plan.stamps_ns[fed:moment.frames]:
                        engine.feed(Frame(stamp_ns, CAMERA, renderer.frame(stamp_ns / NS_PER_S)),
                                    PATIENCE_S)
                    fed = moment.frames
                    engine.drain(PATIENCE_S)
                    before = set(seen)
                    # Questions as such: choices would be scored, not written.
                    texts = dict.fromkeys(planned.question.text for planned in moment.questions
                                          if planned.lot != 'multi')
                    questions = [Question(text, session=text, max_new_tokens=ANSWER_TOKENS)
                                 for text in texts]
                    answers = [pending.result(PATIENCE_S) for pending in
                               [engine.ask(question) for question in questions]]
                    fresh = [seen[key] for key in seen.keys() - before]
                    asked += [_asked(fresh, (*question_ids(model, question), *joined),
                                     answer.token_ids)
                              for question, answer in zip(questions, answers, strict=True)
                              if answer.token_ids]
    finally:
        del model.step
    attended = {id(part.block) for one in asked for part in one.memory.parts}
    return Study(model, asked, {key: one for key, one in seen.items()
                                if one.segment and key in attended}, prefix[len(joined):])


def _asked(fresh: list[Seen], ids: tuple[int, ...], token_ids: tuple[int, ...]) -> Asked:
    """The question's block is known by its tokens, the answer's by what it attends to last."""
    branch = next(one for one in fresh if tuple(one.ids) == ids)
    written = next(one for one in fresh
                   if one.view.parts and one.view.parts[-1].block is branch.block)
    return Asked(branch.view, ids, token_ids, written.block.start)


def answer(study: Study, blocks: Blocks) -> list[torch.Tensor]:
    """Log-probabilities [tokens + 1, vocab] of every answer, read and not chosen.

    `blocks` stand in the place of those with these ids.
    """
    found = []
    for first in range(0, len(study.asked), SPANS_A_STEP):
        part = study.asked[first:first + SPANS_A_STEP]
        questions = [_question(study, one, blocks) for one in part]
        heads = study.model.step(questions)
        spans = []
        for one, span in zip(part, questions, strict=True):
            view = View((*span.view.parts, Part(span.block, len(one.question), 0)), 0, one.start)
            run = TokenRun.text((*study.prefix, *one.answer), one.start)
            spans.append(Span(study.model.new_block(one.start, len(run)), view, run, 'all'))
        found += [torch.cat((head, rows))[len(study.prefix):].log_softmax(-1)
                  for head, rows in zip(heads, study.model.step(spans), strict=True)]
    return found


def _question(study: Study, one: Asked, blocks: Blocks) -> Span:
    start = one.memory.start('source')
    parts = tuple(part._replace(block=blocks.get(id(part.block), part.block))
                  for part in one.memory.parts)
    return Span(study.model.new_block(start, len(one.question)), replace(one.memory, parts=parts),
                TokenRun.text(one.question, start), 'last')


def compare(exact: list[torch.Tensor], other: list[torch.Tensor]) -> dict[str, float]:
    """Divergence and agreement of the tokens that were to come."""
    nats = torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in zip(exact, other, strict=True)])
    same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(exact, other, strict=True)]
    return {'divergence_nats': float(nats.mean()),
            'tokens_agree': float(torch.cat(same).double().mean()),
            'answers_agree': statistics.fmean(bool(one.all()) for one in same)}


def attention_errors(study: Study, versions: Mapping[str, Blocks]) -> dict[str, float]:
    """Every scheme beside the exact result, in all layers of one step of questions."""
    squares = dict.fromkeys(versions, 0.0)
    total = 0.0

    model = study.model
    exact = choose_backend('grouped', model.block_shape,
                           model.hf.config.text_config.num_attention_heads)
    rope = MRope(model.hf.config.text_config, model.device)
    plans = {label: plan_step([_question(study, one, blocks) for one in study.asked[:ERRORS_OF]],
                              rope, model.dtype, model.device, exact)
             for label, blocks in versions.items()}

    def attend(plan: StepPlan, query: torch.Tensor, layer: int, scaling: float) -> torch.Tensor:
        nonlocal total
        right = exact(plan, query, layer, scaling)                             # [N, H, D]
        total += float(right.square().sum())
        for label, other in plans.items():
            for ours, theirs in zip(plan.spans, other.spans, strict=True):
                block, last = ours.span.block, len(ours.span.run)
                theirs.span.block.write(layer, block.layer_keys(layer, last),
                                        block.layer_values(layer, last))
            wrong = exact(other, query, layer, scaling)
            squares[label] += float((wrong - right).square().sum())
        return right

    try:
        model.set_attention(attend)
        model.step([_question(study, one, {}) for one in study.asked[:ERRORS_OF]])
    finally:
        model.set_attention('fixed')
    return {label: (square / total) ** 0.5 for label, square in squares.items()}


def step_ms(study: Study, blocks: Blocks, repeats: int = 15) -> float:
    """Median time of a step of one token over the last memory."""
    one = study.asked[-1]
    times = []
    for _ in range(repeats):
        span = _question(study, replace(one, question=one.question[:1]), blocks)
        started_s = time.perf_counter()
        study.model.step([span])
        times.append(1e3 * (time.perf_counter() - started_s))
    return statistics.median(times)


# The schemes

def turned(study: Study, bits: int) -> dict[int, Block]:
    """All segments quantized as the package does it."""
    return {key: quantize(one.block, QuantScheme(bits)) for key, one in study.segments.items()}


def twin(block: Block) -> KVBlock:
    """A block in full precision with the numbers that this one says it holds."""
    layers = range(block.shape.layers)
    return KVBlock.from_state(block.shape, block.start, block.end, {
        name: torch.stack([read(layer, block.length) for layer in layers])
        for name, read in (('keys', block.layer_keys), ('values', block.layer_values))})


def schemes(study: Study) -> Iterator[tuple[int, str, Blocks, float]]:
    """(bits, scheme, blocks in the place of the segments', bits a number)."""
    newest = {id(part.block) for one in study.asked
              for part in [part for part in one.memory.parts
                           if id(part.block) in study.segments][-RECENT:]}
    for bits in BITS:
        blocks = turned(study, bits)
        size = (8 * sum(block.nbytes for block in blocks.values())
                / sum(_numbers(block) for block in blocks.values()))
        yield bits, 'turned', blocks, size
        yield bits, 'recent', {key: block for key, block in blocks.items() if key not in newest
                               }, size
        for key_axis, value_axis in RANGES:
            made = {key: _ranged(study, one, bits, key_axis, value_axis)
                    for key, one in study.segments.items()}
            size = (sum(held for _, held in made.values())
                    / sum(_numbers(block) for block, _ in made.values()))
            yield (bits, f'{key_axis}_{value_axis}',
                   {key: block for key, (block, _) in made.items()}, size)


def _numbers(block: Block) -> int:
    shape = block.shape
    return 2 * shape.layers * shape.kv_heads * block.length * shape.head_dim


def _ranged(study: Study, one: Seen, bits: int, key_axis: str, value_axis: str
            ) -> tuple[KVBlock, float]:
    """A block with the numbers that ranges would keep, and the bits that they would take."""
    block, state = one.block, one.block.state()
    keys, turn_back = state['keys'], 0
    if key_axis == 'before':
        rope = MRope(study.model.hf.config.text_config, study.model.device)
        cos, sin = rope.table(np.concatenate(one.positions, axis=1), keys.dtype)  # [T, D]
        keys, turn_back = rotate(keys, cos, -sin), 3 * 32 * block.length
    keys, key_bits = _range(keys, bits, key_axis != 'token')
    values, value_bits = _range(state['values'], bits, value_axis != 'token')
    if key_axis == 'before':
        keys = rotate(keys, cos, sin)
    kept = KVBlock.from_state(block.shape, block.start, block.end,
                              {'keys': keys, 'values': values})
    return kept, key_bits + value_bits + turn_back


def _range(x: torch.Tensor, bits: int, along_tokens: bool) -> tuple[torch.Tensor, float]:
    """[L, H, T, D] in even steps between minimum and maximum of each group, and bits held."""
    axis, top = (2 if along_tokens else 3), 2 ** bits - 1
    kept, held = [], float(x.numel() * bits)
    for part in x.split(GROUP, dim=axis):
        low, high = part.amin(axis, keepdim=True), part.amax(axis, keepdim=True)
        step = ((high - low) / top).half().to(x.dtype).clamp_min(1e-6)
        low = low.half().to(x.dtype)
        kept.append(((part - low) / step).round().clamp(0, top) * step + low)
        held += 2 * 16 * low.numel()
    return torch.cat(kept, dim=axis), held
