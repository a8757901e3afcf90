"""What a run needs besides the training step: checkpoints, logs, signals, several processes.

workdir          a run's directory: creates it, locks it, compares its config
checkpoint       saves and restores with orbax
verified         finds the newest checkpoint that is not damaged, and reads it
checksums        finds damaged files of a checkpoint before orbax reads them
logs             metrics.jsonl, status.json, lines for the user
dashboards       TensorBoard's event files, Weights & Biases
signals          SIGTERM, SIGINT and time limits
processes        multi-process runs
inputs           a run's images, preprocessing and training view, made from its config
meter            batches on the devices, steps under way, and their metrics as lines of the log
record           what a run remembers beside its state, and when it saves
status           how a run greets, ends and explains its failures
profiler         profiles a few training steps
summary          a table of the net's layers
cached_features  pool5 of a frozen backbone, computed once per image
"""
