"""Runs a function on untrusted text in killable worker processes with limits on CPU time, memory and system calls."""
