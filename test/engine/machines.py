"""What a step costs on some made-up machines: slow, fast, and one that goes up by steps."""

from tww_ros.model.costs import StepCosts

# Milliseconds by rows.
MACHINES = {
    'orin': {1: 10, 4: 10, 5: 60, 16: 62, 64: 90, 256: 190, 512: 330},
    'h200': {1: 10, 4: 10, 5: 10, 64: 11, 256: 13, 512: 17},
    'cpu': {1: 2, 4: 3, 64: 17, 256: 62, 512: 121},
    'steps': {1: 5, 8: 5, 9: 20, 32: 20, 33: 50, 128: 50, 129: 200},
}
COSTS = {name: StepCosts(tuple(table), tuple(ms / 1e3 for ms in table.values()))
         for name, table in MACHINES.items()}
