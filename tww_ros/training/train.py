"""`tww train`: the embedded model from scratch, or a checkpoint (with LoRA) on a data set.

    tww train --out runs/embedded                               the tabletop, from random weights
    tww train --out runs/mine --data DIR --model CKPT --lora 16 your own streams

In: the options. Out: in `--out`, what the trainer writes, and after each stage a checkpoint that
`load_model` takes (`stages/<name>/`); the last one is the result. Started again with the same
folder it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tww_ros.errors import TrainingError

# Steps and learning rates of the embedded model's stages, from random weights.
STAGES = {'perception': (150, 3e-3), 'events': (600, 3e-3), 'single': (1_500, 2.4e-3),
          'multi': (1_000, 1.6e-3), 'long': (1_500, 1.5e-3)}
# Without notes an answer goes through everything that was seen, at length.
NO_NOTES = {'note.enabled': False, 'memory.resident_tokens': 8_192, 'answer.max_new_tokens': 1_024}
# On a user's data the order is the same; perception is what a checkpoint brings along.
TUNE_RATE, LORA_RATE = 2e-5, 1e-4
LORA_LAYERS = r'.*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)'


@dataclass(frozen=True)
class TrainOptions:
    """model: '' makes the embedded model from scratch. data: None takes the tabletop world.

    lora: rank of the adapters; 0 trains every weight. threads: of torch, 0 = its own choice.
    fuse: see forward.fused; None = in long runs, where there is a C++ compiler. optimizer:
    'adamw' or 'muon' (see `training.optimizers`); 'auto' = muon from random weights only.
    """

    out: Path
    model: str = ''
    positions: str = 'auto'
    data: Path | None = None
    quantization: str = 'none'
    lora: int = 0
    stages: tuple[str, ...] = tuple(STAGES)
    steps: tuple[int, ...] = ()
    rate: float = 0.0
    tokens: int = 6_000
    seed: int = 0
    notes: bool = True
    precision: str = 'auto'
    device: str = 'auto'
    workers: int = 1
    threads: int = 0
    fuse: bool | None = None
    optimizer: str = 'auto'


def train(options: TrainOptions) -> Path:
    """Train; returns the directory of the result. TrainingError when the options do not fit."""
    import torch

    from tww_ros.config import EngineConfig
    from tww_ros.model.loading import load_model
    from tww_ros.model.saving import save_checkpoint
    from tww_ros.training.card import write_card
    from tww_ros.training.embedded import untrained
    from tww_ros.training.heap import keep_freed_memory
    from tww_ros.training.recipes import TabletopBatches
    from tww_ros.training.trainer import Trainer, TrainerConfig

    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    _check(options)
    options.out.mkdir(parents=True, exist_ok=True)
    _remember(options)
    device = _device(options)
    if options.model:
        model = load_model(options.model, quantization=options.quantization, device=device,
                           positions=_positions(options), prompts='tww')
    else:
        model = untrained(options.seed, _positions(options), device)
    if not options.notes:
        model.settings.update(NO_NOTES)
    if options.lora:
        add_adapters(model.hf, options.lora)
    config = EngineConfig.from_flat(model.settings)
    if options.data is None:
        batches = TabletopBatches(model, config, options.tokens, options.seed, options.notes)
    else:
        from tww_ros.training.dataset import DatasetBatches
        batches = DatasetBatches(options.data, model, config, options.tokens, options.seed)

    def export(stage: str) -> None:
        place = options.out / 'stages' / stage
        if options.lora:
            save_adapters(model, options.model, place)
        else:
            # Half precision: what is published is what is evaluated.
            save_checkpoint(model, place, torch.float16)
        done = options.stages[:options.stages.index(stage) + 1]
        write_card(place, model, name=options.out.name, command=_command(options),
                   seed=options.seed, hours=trainer.hours,
                   begun=Path(options.model).name or 'random weights',
                   data='the tabletop world, training seeds, drawn while training'
                   if options.data is None else options.data.name,
                   stages={one.name: one.steps for one in stages if one.name in done})

    stages = _stages(options)
    trainer = Trainer(model, batches, TrainerConfig(
        options.out, stages, precision=options.precision, workers=options.workers,
        fuse=_fuse(options, sum(stage.steps for stage in stages)),
        muon=_optimizer(options) == 'muon'),
        after_stage=export)
    trainer.run()
    return options.out / 'stages' / options.stages[-1]


def add_adapters(hf: Any, rank: int) -> None:
    """LoRA on every linear layer of the language model; all other weights are frozen.

    hf may be quantized (QLoRA): adapters are float32 beside 4-bit weights.
    """
    from peft import LoraConfig, inject_adapter_in_model
    hf.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_LAYERS),
                            hf)


def save_adapters(model: Any, base: str, folder: Path) -> None:
    """Adapters alone, with the base's name and what load_model has to know."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    from tww_ros.model.marks import Marks
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous()
               for name, value in get_peft_model_state_dict(model.hf).items()}
    save_file(weights, folder / 'adapter_model.safetensors')
    config = next(iter(model.hf.peft_config.values())).to_dict()
    config['base_model_name_or_path'] = os.path.abspath(base) if Path(base).exists() else base
    config['target_modules'] = LORA_LAYERS
    (folder / 'adapter_config.json').write_text(json.dumps(config, default=str, indent=2) + '\n')
    Marks(model.scheme, model.style.name, model.settings).write(folder)


def _command(options: TrainOptions) -> str:
    told = f'tww train --out {options.out.name}'
    for flag, value in (('positions', options.positions if options.positions != 'auto' else ''),
                        ('model', Path(options.model).name), ('data', options.data),
                        ('lora', options.lora), ('seed', options.seed),
                        ('rate', options.rate),
                        ('optimizer', options.optimizer if options.optimizer != 'auto' else '')):
        if value:
            told += f' --{flag} {Path(value).name if flag == "data" else value}'
    if options.stages != tuple(STAGES):
        told += f' --stages {" ".join(options.stages)}'
    if options.steps:
        told += f' --steps {" ".join(map(str, options.steps))}'
    return told + (' --no-notes' if not options.notes else '')


def _positions(options: TrainOptions) -> str:
    """As asked for; else as the checkpoint was trained, or as Think While Watching trains a stock
    one."""
    from tww_ros.model.marks import local_marks
    from tww_ros.training.embedded import SCHEME
    if options.positions != 'auto':
        return options.positions
    if not options.model:
        return SCHEME
    marks = local_marks(options.model)
    return marks.positions if marks.prompts == 'tww' else 'decoupled'


def _device(options: TrainOptions) -> str:
    """Of several processes each has a GPU of its own; accelerate tells which by LOCAL_RANK."""
    import torch
    if options.device != 'auto' or not torch.cuda.is_available():
        return options.device
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def _fuse(options: TrainOptions, steps: int) -> bool:
    if options.fuse is not None:
        return options.fuse
    return steps > 500 and shutil.which('g++') is not None


def _optimizer(options: TrainOptions) -> str:
    if options.optimizer != 'auto':
        return options.optimizer
    return 'adamw' if options.model else 'muon'


def _stages(options: TrainOptions) -> tuple[Any, ...]:
    from tww_ros.training.trainer import Stage
    stages = []
    for index, name in enumerate(options.stages):
        steps, rate = STAGES[name]
        steps = options.steps[index] if options.steps else steps
        tuned = LORA_RATE if options.lora else TUNE_RATE if options.model else rate
        rate = options.rate or tuned
        stages.append(Stage(name, steps, rate, warmup=min(100, max(1, steps // 10))))
    return tuple(stages)


def _check(options: TrainOptions) -> None:
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown or not options.stages:
        raise TrainingError(f'unknown stages {unknown}; expected some of {", ".join(STAGES)}')
    if options.steps and len(options.steps) != len(options.stages):
        raise TrainingError(f'expected one number of steps for each stage of '
                            f'{list(options.stages)}, got {list(options.steps)}')
    if options.lora and not options.model:
        raise TrainingError('LoRA adapts a trained checkpoint; give --model, or leave --lora out')
    if options.quantization != 'none' and not options.lora:
        raise TrainingError(f'{options.quantization} weights cannot be trained themselves; add '
                            '--lora 16')


def _remember(options: TrainOptions) -> None:
    """A folder holds one run: going on with other options would mix two."""
    free = ('precision', 'device', 'workers', 'threads', 'fuse', 'stages', 'steps')
    told = {name: str(value) for name, value in vars(options).items()
            if name not in (*free, 'out')}
    file = options.out / 'options.json'
    if file.exists() and (before := json.loads(file.read_text())) != told:
        changed = [name for name in told if before.get(name) != told[name]]
        raise TrainingError(f'{options.out} holds a run with another {", ".join(changed)}; choose '
                            'another folder, or give the same options to go on')
    # Several processes may do this at once.
    partial = file.with_suffix(f'.{os.getpid()}')
    partial.write_text(json.dumps(told, indent=2) + '\n')
    partial.replace(file)


def register(commands: Any, add: Any) -> None:
    """Declare `tww train`; `add` is the CLI's helper that declares a command."""
    parser = add(commands, 'train', _run, 'train the embedded model, or a checkpoint with LoRA',
                 """
        tww train --out runs/embedded
        tww train --out runs/mine --data my_data --model ~/Qwen3-VL-2B --quantization nf4 --lora 16
        """)
    parser.add_argument('--out', type=Path, required=True, metavar='DIR',
                        help='folder of the run; the same folder goes on')
    parser.add_argument('--model', default='', help='checkpoint to go on from (default: the '
                        'embedded model from random weights)')
    parser.add_argument('--positions', choices=('auto', 'continuous', 'decoupled'),
                        default='auto', help='scheme; auto: as the checkpoint was trained')
    parser.add_argument('--data', type=Path, metavar='DIR',
                        help='data set of `tww data` (default: the tabletop world)')
    parser.add_argument('--quantization', choices=('none', 'int8', 'nf4'), default='none')
    parser.add_argument('--lora', type=int, default=0, metavar='RANK',
                        help='train adapters of this rank instead of all weights')
    parser.add_argument('--stages', nargs='+', default=list(STAGES), choices=list(STAGES))
    parser.add_argument('--steps', nargs='+', type=int, default=[], metavar='N',
                        help='steps of each stage')
    parser.add_argument('--rate', type=float, default=0.0, help='highest learning rate')
    parser.add_argument('--tokens', type=int, default=TrainOptions.tokens,
                        help='tokens of a batch, about')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--no-notes', action='store_true',
                        help='the ablation: no notes, long reasoning instead')
    parser.add_argument('--optimizer', choices=('auto', 'adamw', 'muon'), default='auto',
                        help='auto: muon from random weights, adamw for a checkpoint')
    parser.add_argument('--precision', choices=('auto', 'no', 'bf16'), default='auto')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--workers', type=int, default=1, help='processes that make batches')
    parser.add_argument('--fuse', action=argparse.BooleanOptionalAction, default=None,
                        help='compile parts of the model (default: in long runs, if there is g++)')
    parser.add_argument('--threads', type=int, default=0, help='torch threads; 0 = all cores')


def _run(arguments: argparse.Namespace) -> int:
    result = train(TrainOptions(
        out=arguments.out, model=arguments.model, positions=arguments.positions,
        data=arguments.data,
        quantization=arguments.quantization, lora=arguments.lora,
        stages=tuple(arguments.stages), steps=tuple(arguments.steps), rate=arguments.rate,
        tokens=arguments.tokens, seed=arguments.seed, notes=not arguments.no_notes,
        precision=arguments.precision, device=arguments.device, workers=arguments.workers,
        threads=arguments.threads, fuse=arguments.fuse, optimizer=arguments.optimizer))
    print(f'trained: {result}')
    return 0
