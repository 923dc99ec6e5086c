"""One update of ours beside the same update of other trainers, timed in one run: `python -m benchmarks.peers --help`."""
