"""Every preset of configs/algorithms on small tasks: `python -m benchmarks.presets`."""
