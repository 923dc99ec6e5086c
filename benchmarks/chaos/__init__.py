"""Attacks on real runs: kills, failing file-system calls, corruption, full disks, second owners, lost peers, signals."""
