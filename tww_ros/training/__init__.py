"""Training: three-stage data sets, the streaming layout as the engine runs it, stages."""
