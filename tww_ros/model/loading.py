"""load_model: a name or a path → VideoLanguageModel, or a ModelError that says what to do.

    'tiny-random'                  seeded five-million-parameter Qwen3-VL; its words mean nothing
    'embedded'                     the small model that ships with the package: it knows the
                                   tabletop world and nothing else
    '/path/to/checkpoint'          a local Qwen3-VL directory
    'Qwen/Qwen3-VL-2B-Instruct'    a hub id

A checkpoint trained for Think While Watching says so in `tww.json` beside its config (see
`model.marks`). Without it, or with arguments other than 'auto', stock settings or the arguments
hold. The vision tower and the output head stay unquantized.
Loading with quantization ends with a self-test of the kernels, because bitsandbytes may import and
yet fail at its first 4-bit product.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    Qwen3VLForConditionalGeneration,
)
from transformers.utils import cached_file

from tww_ros.errors import ModelError
from tww_ros.model.language_model import VideoLanguageModel
from tww_ros.model.marks import FILE, SCHEMES, Marks, folder_of, read_marks
from tww_ros.model.prompts import STYLES
from tww_ros.model.tiny import tiny_model

QUANTIZATIONS = ('none', 'int8', 'nf4')
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
# bitsandbytes says this once per layer and step; the cast is what LLM.int8 is.
logging.getLogger('bitsandbytes.autograd._functions').setLevel(logging.ERROR)
# Nor is the hub's kernel needed that it asks for when it is imported: it has its own.
logging.getLogger('bitsandbytes.backends.cpu.ops').setLevel(logging.ERROR)
# Kept in the compute dtype: the vision tower feeds every layer, the head decides every token.
SKIP_QUANTIZATION = ['lm_head', 'model.visual']
# Of a directory with LoRA adapters only, as `tww train --lora` writes them.
ADAPTER = 'adapter_config.json'
TOKENIZER_FILES = ('tokenizer.json', 'vocab.json')


def load_model(name: str, quantization: str = 'none', device: str = 'auto', dtype: str = 'auto',
               positions: str = 'auto', prompts: str = 'auto',
               seed: int = 0) -> VideoLanguageModel:
    """Load a model by name.

    quantization: 'none', 'int8' or 'nf4'. device: 'auto' (CUDA when there is one), 'cpu', 'cuda',
    'cuda:1', … dtype: 'auto' (bfloat16 on CUDA, float32 on the CPU) or its name. seed: of
    tiny-random's weights. Raises ModelError when something does not fit, with what was expected
    and what to do.
    """
    _check('quantization', quantization, QUANTIZATIONS)
    _check('positions', positions, ('auto', *SCHEMES))
    _check('prompts', prompts, ('auto', *STYLES))
    _check('dtype', dtype, ('auto', *DTYPES))
    target = _device(device)
    kind = DTYPES[dtype] if dtype != 'auto' else (
        torch.bfloat16 if target.type == 'cuda' else torch.float32)
    marks = Marks()
    if name == 'tiny-random':
        model, tokenizer = tiny_model(seed)
        if quantization == 'none':
            model = model.to(target, kind)
        else:
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                model = _from_pretrained(folder, quantization, target, kind)
    else:
        source, adapter = _find(name), None
        if (Path(source) / ADAPTER).is_file():
            source, adapter = _base_of(source), Path(source)
        _check_architecture(source)
        _check_memory(source, quantization, target, kind)
        marks = _marks(str(adapter or source))
        try:
            tokenizer = _tokenizer(source)
        except Exception as error:
            raise ModelError(f'{name}: the tokenizer cannot be read ({error}); expected '
                             'tokenizer.json beside config.json') from error
        model = _from_pretrained(source, quantization, target, kind)
        if adapter is not None:
            _adapt(model, adapter)
    scheme = positions if positions != 'auto' else marks.positions
    style = prompts if prompts != 'auto' else marks.prompts
    loaded = VideoLanguageModel(model, tokenizer, name=name, scheme=scheme, style=STYLES[style],
                                quantization=quantization, settings=marks.settings)
    _self_test(loaded)
    return loaded


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f'{what}: expected one of {", ".join(known)}, got {value!r}')


def _device(name: str) -> torch.device:
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f'device: expected "auto", "cpu" or "cuda[:n]", got {name!r}') from error
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ModelError(f'device {name!r} was asked for, but torch {torch.__version__} sees no '
                         'CUDA device; use device="cpu" or install a CUDA build of torch')
    return device


def _find(name: str) -> str:
    """The local directory, or the hub id as it is."""
    path = folder_of(name)
    if name == 'embedded' and not path.is_dir():
        raise ModelError('this copy of the package holds no embedded model; make it with `tww '
                         f'train --out DIR` and put the last stage into {path}, or use '
                         '"tiny-random" or a Qwen3-VL checkpoint directory')
    if name and path.is_dir():
        if not any((path / file).is_file() for file in ('config.json', ADAPTER)):
            raise ModelError(f'{name}: expected a checkpoint directory with config.json; found '
                             f'{sorted(p.name for p in path.iterdir())[:8]} in {path}')
        return str(path)
    looks_like_path = name.startswith(('/', '.', '~')) or name.count('/') != 1
    if looks_like_path or path.exists():
        raise ModelError(f'no checkpoint at {name!r}: expected "embedded", "tiny-random", a '
                         'directory with config.json and *.safetensors, or a hub id such as '
                         '"Qwen/Qwen3-VL-2B-Instruct"')
    return name


def _base_of(folder: str) -> str:
    try:
        base = json.loads((Path(folder) / ADAPTER).read_text())['base_model_name_or_path']
    except (ValueError, KeyError) as error:
        raise ModelError(f'{folder}/{ADAPTER} cannot be read ({error!r}); expected what `tww '
                         'train --lora` or peft writes') from error
    try:
        return _find(base)
    except ModelError as error:
        raise ModelError(f'{folder} holds adapters for {base!r}, which is not there ({error})'
                         ) from error


def _adapt(model: Qwen3VLForConditionalGeneration, folder: Path) -> None:
    """Put LoRA adapters into the loaded base, in place."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    try:
        told = json.loads((folder / ADAPTER).read_text())
        config = LoraConfig(r=told['r'], lora_alpha=told['lora_alpha'],
                            target_modules=told['target_modules'])
        inject_adapter_in_model(config, model)
        found = set_peft_model_state_dict(model, load_file(folder / 'adapter_model.safetensors'))
    except Exception as error:
        raise ModelError(f'{folder}: the adapters cannot be loaded ({error}); train them again '
                         'for this base') from error
    if found.unexpected_keys:
        raise ModelError(f'{folder}: {len(found.unexpected_keys)} adapter weights fit nothing, '
                         f'among them {found.unexpected_keys[0]}; it is for another base')


def _check_architecture(source: str) -> None:
    try:
        config = AutoConfig.from_pretrained(source)
    except Exception as error:
        raise ModelError(f'{source}: its config cannot be read ({error}); check the name, the '
                         'network and the files, or download it and pass the directory') from error
    if config.model_type != 'qwen3_vl':
        raise ModelError(f'{source} is a {config.model_type!r} checkpoint; expected "qwen3_vl" '
                         '(dense Qwen3-VL, for instance Qwen/Qwen3-VL-2B-Instruct)')


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    # transformers makes an empty tokenizer of a directory that has none.
    if Path(source).is_dir() and not any(Path(source, f).is_file() for f in TOKENIZER_FILES):
        raise FileNotFoundError(f'found none of {", ".join(TOKENIZER_FILES)}')
    return AutoTokenizer.from_pretrained(source)


def _check_memory(source: str, quantization: str, device: torch.device,
                  dtype: torch.dtype) -> None:
    """Refuse before loading what cannot fit; only for local files, whose size is known."""
    if not Path(source).is_dir():
        return
    # 4 and 8 bit shrink the language model, not the vision tower.
    bytes_per_weight = {'none': dtype.itemsize, 'int8': 1.2, 'nf4': 0.7}[quantization]
    needed = _count_weights(source) * bytes_per_weight
    free = (torch.cuda.mem_get_info(device)[0] if device.type == 'cuda'
            else psutil.virtual_memory().available)
    if needed > free:
        raise ModelError(f'{source} needs about {needed / 1e9:.1f} GB on {device} with '
                         f'quantization={quantization!r}, and {free / 1e9:.1f} GB are free; use '
                         'quantization="nf4", a smaller checkpoint, or free memory')


def _count_weights(folder: str) -> int:
    """Weights in the files of a checkpoint, whatever their dtype; damaged files have none."""
    count = 0
    for path in Path(folder).glob('*.safetensors'):
        # Loading will say what is wrong with it.
        with contextlib.suppress(SafetensorError), safe_open(path, 'pt') as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    return count


def _marks(source: str) -> Marks:
    """What the checkpoint says of itself, of a directory or of the hub."""
    file = cached_file(source, FILE, _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)
    return Marks() if file is None else read_marks(Path(file))


def _from_pretrained(source: str, quantization: str, device: torch.device,
                     dtype: torch.dtype) -> Qwen3VLForConditionalGeneration:
    options = {}
    if quantization == 'nf4':
        options['quantization_config'] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True, llm_int8_skip_modules=SKIP_QUANTIZATION)
    elif quantization == 'int8':
        options['quantization_config'] = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_skip_modules=SKIP_QUANTIZATION)
    try:
        model, found = Qwen3VLForConditionalGeneration.from_pretrained(
            source, dtype=dtype, device_map={'': device}, output_loading_info=True, **options)
    except Exception as error:
        raise ModelError(f'{source}: the weights cannot be loaded with '
                         f'quantization={quantization!r} ({error}); check the *.safetensors '
                         'files, or try quantization="none"') from error
    # transformers fills what a checkpoint lacks with random numbers and goes on.
    missing = sorted(found['missing_keys'])
    if missing:
        raise ModelError(f'{source}: {len(missing)} weights are missing, among them {missing[0]}; '
                         'the checkpoint is incomplete, download or save it again')
    if quantization == 'nf4' and device.type == 'cpu' and dtype == torch.float32:
        import bitsandbytes.nn
        # On CPUs with AVX512-BF16 bitsandbytes rounds activations to bfloat16 whatever dtype was
        # asked for, an error of 0.02 in the logits; float32 means float32, and dtype='bfloat16'
        # still takes that quick path.
        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.support_avx512bf16_for_cpu = False
    return model


@torch.inference_mode()
def _self_test(loaded: VideoLanguageModel) -> None:
    """One product through the first layer: quantized kernels may import and still not run."""
    layer = loaded.hf.model.language_model.layers[0].mlp
    probe = torch.ones(2, layer.gate_proj.in_features, device=loaded.device, dtype=loaded.dtype)
    try:
        finite = bool(torch.isfinite(layer(probe)).all())
    except Exception as error:
        raise ModelError(f'{loaded.name}: the {loaded.quantization} kernels do not run on '
                         f'{loaded.device} ({error}); use quantization="none", or install a '
                         'bitsandbytes built for this machine') from error
    if not finite:
        raise ModelError(f'{loaded.name}: the first layer gives values that are not finite with '
                         f'quantization={loaded.quantization!r} and {loaded.dtype}; try another '
                         'dtype')
