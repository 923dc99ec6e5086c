"""`reval report`: a run, or two side by side, as one HTML file that needs no network.

`reading` what the files say · `headline` the first screen · `charts` SVG · `curves` which metrics · `browser` the rollouts ·
`choice` which of them · `tokens` the AUCs and coloured examples of `reval inspect` · `comparison` two runs · `page` the file.
"""

from __future__ import annotations

from reval_jax.tools.report.page import MAX_BYTES, write, write_comparison

__all__ = ["MAX_BYTES", "write", "write_comparison"]
