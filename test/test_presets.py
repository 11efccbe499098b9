"""Presets: their settings are valid, and their budgets add up below the memory of the hardware."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tww_ros.config import EngineConfig, NodeConfig, settings

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'config'
GB = 1e9
# layers, width, query heads, KV heads, head_dim, MLP; then the vision tower: layers, width, MLP.
# From the config.json of the released checkpoints; the head of 2B and 4B is the embedding.
MODELS = {'2B': (28, 2048, 16, 8, 128, 6144, 24, 1024, 4096),
          '4B': (36, 2560, 32, 8, 128, 9728, 24, 1024, 4096),
          '8B': (36, 4096, 32, 8, 128, 12288, 27, 1152, 4304)}
VOCABULARY = 151_936
# 4 bits, 8 bits of scale for 64 weights, 32 bits for 256 scales.
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
CARDS_GIB = {'desktop_8gb': 8, 'desktop_12gb': 12, 'desktop_24gb': 24, 'jetson_orin_nano_8gb': 8,
             'jetson_orin_nx_16gb': 16, 'jetson_agx_orin': 32}


def preset(name):
    return yaml.safe_load((CONFIG / f'{name}.yaml').read_text())['/**']['ros__parameters']


def rows(name):
    """The table of the comment: name → GB; and what the sum is compared with."""
    text = (CONFIG / f'{name}.yaml').read_text()
    found = re.findall(r'^#   (\w+) +(\d+\.\d\d)  (.*)$', text, re.M)
    limit = float(re.match(r'of (\d+\.\d\d): ', found[-1][2])[1])
    return {word: float(value) for word, value, _ in found}, limit


def weights_gb(size, quantization):
    layers, width, heads, kv, dim, mlp, v_layers, v_width, v_mlp = MODELS[size]
    linear = layers * (2 * width * heads * dim + 2 * width * kv * dim + 3 * width * mlp)
    vision = v_layers * (4 * v_width ** 2 + 2 * v_width * v_mlp)
    # Three DeepStack mergers and the last one; patch embedding; learned positions (48×48).
    vision += 4 * ((4 * v_width) ** 2 + 4 * v_width * width)
    vision += 3 * 2 * 16 * 16 * v_width + 48 * 48 * v_width
    kept = (2 if size == '8B' else 1) * VOCABULARY * width + vision
    bits = NF4_BITS if quantization == 'nf4' else 16
    return (linear * bits / 8 + kept * 2) / GB


@pytest.mark.parametrize('name', sorted(path.stem for path in CONFIG.glob('*.yaml')))
def test_settings_are_valid(name):
    values = preset(name)
    values.pop('cameras', None)
    node = {entry.name: entry for entry in settings(NodeConfig)}
    for key in [key for key in values if key in node]:
        node[key].check(values.pop(key))
    EngineConfig.from_flat(values)


@pytest.mark.parametrize('name', CARDS_GIB)
def test_budgets_add_up(name):
    values, (told, limit) = preset(name), rows(name)
    size = re.fullmatch(r'Qwen/Qwen3-VL-(\dB)-Instruct', values['model'])[1]
    layers, _, _, kv, dim, *_ = MODELS[size]
    token_bytes = layers * 2 * kv * dim * 2
    engine = EngineConfig.from_flat({key: value for key, value in values.items() if '.' in key})
    memory = engine.memory
    assert told['weights'] == pytest.approx(weights_gb(size, values['quantization']), abs=0.02)
    assert told['kv'] == pytest.approx((memory.device_bytes + memory.quantized_bytes) / GB,
                                       abs=0.006)
    assert told['sessions'] == pytest.approx(engine.answer.sessions_bytes / GB, abs=0.006)
    assert told['fetched'] == pytest.approx(
        memory.resident_tokens * token_bytes * 3.15 / 16 / GB, abs=0.006)
    assert told['sum'] == pytest.approx(sum(told.values()) - told['sum'], abs=0.005)
    assert told['sum'] < limit <= CARDS_GIB[name] * 2**30 / GB
    # What is always looked at in full precision has room in the first tier.
    wanted = memory.recent_tokens + memory.resident_note_tokens
    assert wanted * token_bytes <= memory.device_bytes
    if name.startswith('jetson'):
        assert memory.host_bytes == 0, 'host and device are the same memory'


def test_embedded_adds_up():
    told, limit = rows('embedded')
    memory = EngineConfig.from_flat({key: value for key, value in preset('embedded').items()
                                     if '.' in key}).memory
    assert told['kv'] == pytest.approx((memory.device_bytes + memory.quantized_bytes) / GB,
                                       abs=0.006)
    assert told['sum'] == pytest.approx(sum(told.values()) - told['sum'], abs=0.005)
    assert told['sum'] < limit


def test_foxglove_layout_shows_what_the_node_publishes():
    layout = json.loads((CONFIG / 'tww.foxglove.json').read_text())
    shown, places = set(), [layout['layout']]
    while places:
        place = places.pop()
        if isinstance(place, str):
            shown.add(place)
        else:
            places += [place['first'], place['second']]
    panels = layout['configById']
    assert shown == set(panels)
    status = (ROOT / 'tww_interfaces/msg/MemoryStatus.msg').read_text()
    paths = [path['value'] for panel in panels.values() for path in panel.get('paths', [])]
    assert paths
    for path in paths:
        field = re.match(r'/tww/status\.(\w+)', path)[1]
        assert re.search(rf'^\S+ {field}\b', status, re.M), field
    ask = json.loads(panels['CallService!ask']['requestPayload'])
    request = (ROOT / 'tww_interfaces/srv/Ask.srv').read_text().split('---')[0]
    for field in ask:
        assert re.search(rf'^\S+ {field}\b', request, re.M), field
