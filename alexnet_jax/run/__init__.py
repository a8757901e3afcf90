"""What a run needs besides the training step: checkpoints, logs, signals, several processes.

workdir          a run's directory: creates it, locks it, compares its config
checkpoint       saves and restores with orbax; uses fingerprints and quiet
logs             metrics.jsonl, TensorBoard, status.json, lines for the user
signals          SIGTERM, SIGINT and time limits
processes        multi-process runs
profiler         profiles a few training steps
cached_features  pool5 of a frozen backbone, computed once per image
"""
