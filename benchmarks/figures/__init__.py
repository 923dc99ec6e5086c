"""One experiment for each question of the paper, on the test bed; `python -m benchmarks.figures` runs and draws them."""
