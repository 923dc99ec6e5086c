"""Runs one function on untrusted text in worker processes, each limited in CPU time, memory and system calls, and killable."""
