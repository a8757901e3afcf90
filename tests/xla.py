"""XLA's flags for the tests, which compile many programs and run each of them a few times.

Compiling takes most of the suite's time: without LLVM's optimisations and with the older emitter of fused
loops it takes half as long. XLA's own passes stay on. tests/test_main.py runs what users run.
"""

_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def flags(devices: int) -> str:
    """The value of `XLA_FLAGS` for a process with so many CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {_QUICK}"
