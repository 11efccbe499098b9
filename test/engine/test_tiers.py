"""KV blocks in their tiers while an engine runs: budgets, order, and what an answer can see."""

from __future__ import annotations

import pytest
from engine.harness import SMALL, WAIT_S, clip, watch

from tww_ros import Engine, EngineConfig, Question
from tww_ros.memory.tiers import TIERS

BUDGETS = {'device': 65_536, 'quantized': 16_384, 'host': 8_192}


@pytest.mark.parametrize('deterministic', [False, True], ids=['live', 'deterministic'])
def test_tiers_keep_their_budgets_and_all_of_them_can_be_seen(deterministic, tiny, tmp_path):
    settings = {**SMALL, 'note.max_new_tokens': 2, 'memory.kv_bits': 3,
                'memory.folder': str(tmp_path), 'step.deterministic': deterministic,
                **{f'memory.{tier}_bytes': size for tier, size in BUDGETS.items()}}
    with Engine(tiny, EngineConfig.from_flat(settings)) as engine:
        used = []
        for second in range(0, 24, 2):
            watch(engine, clip(second, second + 2))
            used.append(engine.memory.tier_bytes)
        infos = engine.memory.segments()
        places = [TIERS.index(info.tier) for info in infos]
        assert places == sorted(places, reverse=True), 'the oldest are furthest'
        assert {info.tier for info in infos} == {'device', 'quantized', 'host', 'disk'}
        largest = max(info.kv_bytes for info in infos)
        for moment in used:
            assert moment['device'] <= BUDGETS['device'] + largest
            # The keeper has caught up, and nothing here is too large by itself.
            assert all(moment[tier] <= BUDGETS[tier] for tier in ('quantized', 'host'))
        for tier in ('device', 'quantized', 'host', 'disk'):
            info = next(info for info in infos if info.tier == tier)
            answer = engine.ask(Question('What?', window=(info.start_ns, info.end_ns),
                                         max_new_tokens=2)).result(WAIT_S)
            evidence, = answer.evidence
            assert (evidence.segment_id, evidence.tier) == (info.id, tier)
            assert answer.reused_tokens >= info.tokens
