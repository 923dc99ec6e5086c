"""Measurements that the documentation quotes, one command for each."""
