"""The tabletop: a simulated camera over a table, with ground truth, notes and questions."""
