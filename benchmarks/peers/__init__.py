"""Times our update and sampler and those of other libraries in one run: `python -m benchmarks.peers --help`."""
