"""What a run needs besides the training step: checkpoints, logs, signals, several processes.

workdir          a run's directory: creates it, locks it, compares its config
checkpoint       checkpoints by orbax; fingerprints and quiet serve it
logs             metrics.jsonl, TensorBoard, status.json, lines for the user
signals          SIGTERM, SIGINT and time limits
processes        multi-process runs
profiler         profiles of some steps
cached_features  pool5 of a frozen backbone, computed once per image
"""
