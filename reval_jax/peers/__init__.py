"""The other processes of a program: all meet before jax starts, and none outlives another that is lost.

`meeting` where they meet · `watching` what ends a process whose peer is gone · `forwarding` keeps jax from aborting first ·
`lines` the connection between two.

Each process keeps one TCP connection to process 0, made at the coordinator's address before jax listens there. So a missing
process, two with one index or different versions are one message; and a process whose peer was killed, stopped or failed ends
with one message that names it, where jax and gloo would wait for minutes and then abort with a stack of C++. Only the standard
library is imported, so that the `reval` command can use this package at once.
"""

from __future__ import annotations

from reval_jax.peers.forwarding import Forwarder
from reval_jax.peers.meeting import Circle, Place, differing, from_environment, meet
from reval_jax.peers.watching import advise, command, told, watch

__all__ = [
    "Circle",
    "Forwarder",
    "Place",
    "advise",
    "command",
    "differing",
    "from_environment",
    "meet",
    "told",
    "watch",
]
