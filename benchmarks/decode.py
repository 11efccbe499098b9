"""Decoding in numbers: a step's time against what this machine's memory allows, and where it goes.

    scripts/bench decode --quick --json FILE                   a minute on two cores
    scripts/bench decode --model qwen3vl-2b-random --quantization nf4 --json FILE

The model alone, on one thread as the engine has it, over a view as large as the engine's settings
allow (_scene.py):

    decode_<n>_sessions_…     one step that decodes a token for each of n answers; _to_bound: ÷ the
                              least time that its bytes and FLOPs take here (_roofline.py)
    packed_<n>_answers_…      n answers' tokens, a note's token and a patch being read in one step;
                              _throughput: the time of the same work, span after span, ÷ that of
                              the packed step
    dispatches_…              torch operations of a step
    share_of_step_…           of one session's step: attention with its projections, the rest of
                              the layers, the head, everything around them (left out where graphs
                              are replayed)

And through the engine, with `endless` answers: answer_tokens_per_s of 1 and of 8 sessions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from _camera import WAIT_S, Film, fill, tabletop
from _models import Loaded, arguments, endless, finish, load, synchronize
from _report import Report, median
from _roofline import add_line, measure_machine, step_work
from _scene import ANSWERS, build
from torch.utils._python_dispatch import TorchDispatchMode

from tww_ros import Engine, EngineConfig, Question
from tww_ros.engine.cpu import limit_threads
from tww_ros.model.language_model import VideoLanguageModel

SESSIONS = (1, 8)
# Of the engine's own measure: segments watched before, tokens of an answer.
WATCHED, ANSWER_TOKENS = 40, 64
SEGMENT_S = 1.5
# Of steps, and of answers through the engine.
REPEATS, QUICK_REPEATS = (200, 9), (40, 3)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments('decode', argv)
    loaded, report = load(options), Report('decode')
    steps, rounds = QUICK_REPEATS if options.quick else REPEATS
    measure_steps(report, loaded, steps)
    measure_sessions(report, loaded, rounds)
    loaded.target(report, 'packed_1_answers_throughput', '>=', 1.3, 1.5)
    loaded.target(report, 'answer_tokens_per_s_8_sessions_to_1', '>=', 2.0, 5.0)
    loaded.target(report, 'decode_1_sessions_to_bound', '<=', None, 2.0)
    return finish(report, options, loaded)


def measure_steps(report: Report, loaded: Loaded, repeats: int) -> None:
    """Times, rooflines, packed steps, dispatches, shares."""
    model, threads = loaded.model, torch.get_num_threads()
    limit_threads(model.device, 0)
    try:
        machine = measure_machine(model.device, model.dtype)
        report.add('machine_gb_per_s', machine.bytes_per_s / 1e9)
        report.add('machine_tflop_per_s', machine.flop_per_s / 1e12)
        scene = build(loaded, SEGMENT_S)
        report.add('view_parts', len(scene.answers[0].view.parts))
        report.add('view_tokens', scene.answers[0].view.tokens)
        steps = {f'decode_{count}_sessions': [each.span() for each in scene.answers[:count]]
                 for count in SESSIONS}
        steps['read_patch'] = [scene.patch]
        packed = {count: scene.spans(count) for count in ANSWERS}
        works = {name: step_work(model, spans) for name, spans in steps.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        ratios: dict[int, list[float]] = {count: [] for count in packed}
        for number in range(repeats + 3):
            for name, spans in steps.items():
                seconds[name].append(scene.run(spans))
            for count, spans in packed.items():
                apart = sum(scene.run([span]) for span in spans)
                ratios[count].append(apart / scene.run(spans))
            if number == 2:
                # Warm now: pages, kernels, graphs.
                for values in (*seconds.values(), *ratios.values()):
                    values.clear()
        for name, work in works.items():
            add_line(report, name, work, machine, median(seconds[name]))
        for count, values in ratios.items():
            report.add(f'packed_{count}_answers_throughput', median(values))
        for name, spans in steps.items():
            report.add(f'dispatches_{name}', count_dispatches(lambda s=spans: scene.run(s)))
        for name, share in shares(model, lambda: scene.run(steps['decode_1_sessions'])).items():
            report.add(f'share_of_step_{name}', share)
    finally:
        torch.set_num_threads(threads)


class _Counting(TorchDispatchMode):
    """Counts torch operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Callable, types: object, args: tuple = (),
                           kwargs: dict | None = None) -> object:
        self.count += 1
        return function(*args, **(kwargs or {}))


def count_dispatches(action: Callable[[], object]) -> int:
    """Torch operations of one action."""
    with _Counting() as counting:
        action()
    return counting.count


def shares(model: VideoLanguageModel, action: Callable[[], float], repeats: int = 20
           ) -> dict[str, float]:
    """Where a step's time goes, by hooks on the stock modules."""
    inside: Counter[str] = Counter()
    began: dict[torch.nn.Module, float] = {}
    modules = dict.fromkeys(model.hf.model.language_model.layers, 'layers')
    modules |= {layer.self_attn: 'attention' for layer in model.hf.model.language_model.layers}
    modules[model.hf.lm_head] = 'head'

    def before(module: torch.nn.Module, _: object) -> None:
        synchronize(model.device)
        began[module] = time.perf_counter()

    def after(module: torch.nn.Module, *_: object) -> None:
        synchronize(model.device)
        inside[modules[module]] += time.perf_counter() - began[module]

    hooks = [hook for module in modules for hook in (
        module.register_forward_pre_hook(before), module.register_forward_hook(after))]
    try:
        total = sum(action() for _ in range(repeats))
    finally:
        for hook in hooks:
            hook.remove()
    if not inside['layers']:
        return {}
    return {'attention': inside['attention'] / total,
            'rest_of_layers': (inside['layers'] - inside['attention']) / total,
            'head': inside['head'] / total,
            'around': (total - inside['layers'] - inside['head']) / total}


def measure_sessions(report: Report, loaded: Loaded, repeats: int) -> None:
    """Tokens a second of one session and of eight together, in turn, through the engine."""
    model, film = loaded.model, Film(tabletop(loaded.picture_px))
    rates: dict[int, list[float]] = {count: [] for count in SESSIONS}
    config: EngineConfig = loaded.live(1.0, SEGMENT_S)
    with Engine(model, config) as engine, endless(model):
        fill(engine, film, WATCHED, SEGMENT_S)
        for number in range(repeats + 1):
            for count in SESSIONS:
                rates[count].append(answers_per_s(engine, count, number))
    for count, values in rates.items():
        report.add(f'answer_tokens_per_s_{count}_sessions', median(values[1:]))
    report.add('answer_tokens_per_s_8_sessions_to_1', median(
        [eight / one for eight, one in zip(rates[8][1:], rates[1][1:], strict=True)]))


def answers_per_s(engine: Engine, sessions: int, number: int) -> float:
    """Tokens a second that so many sessions write together, behind their first ones."""
    pending = [engine.ask(Question('What is on the table?', session=f'{sessions} {number} {each}',
                                   max_new_tokens=ANSWER_TOKENS)) for each in range(sessions)]
    answers = [each.result(WAIT_S) for each in pending]
    first_s = min(p.asked_s + a.first_token_s for p, a in zip(pending, answers, strict=True))
    last_s = max(p.asked_s + a.total_s for p, a in zip(pending, answers, strict=True))
    return (sum(answer.completion_tokens for answer in answers) - sessions) / (last_s - first_s)
