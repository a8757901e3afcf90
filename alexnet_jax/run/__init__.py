"""What a run needs besides the training step: checkpoints, logs, signals, several processes.

workdir          a run's directory: creates it, locks it, compares its config
checkpoint       saves and restores with orbax
intact           finds the newest intact checkpoint, by checksums of its files
record           what a run remembers besides its state, such as when to lower the rate
logs             metrics.jsonl, status.json, lines for the user
dashboards       TensorBoard's event files, Weights & Biases
status           a run's first and last lines
faults           names faults outside the program: disk, memory, lost processes
signals          SIGTERM, SIGINT and time limits
processes        multi-process runs
inputs           a run's images, preprocessing and augmentation, made from its config
meter            logs the metrics of training steps
pace             how far the host runs ahead, how long it waits for input, what is due
memory           refuses a training step that is larger than the free memory
terminal         a run's progress on a terminal
profiler         profiles a few training steps
summary          a table of the net's layers
cached_features  pool5 of a frozen backbone, computed once per image
"""
