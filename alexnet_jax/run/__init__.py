"""What surrounds a run: checkpoints, logs, signals, processes."""
