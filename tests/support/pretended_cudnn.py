"""cuDNN's calls lowered without cuDNN: while it traces them, jax asks the driver for the versions of library and card."""

from __future__ import annotations

import pytest
from jax._src.cudnn import fused_attention_stablehlo


def patch(monkeypatch: pytest.MonkeyPatch, *, version: int, is_at_least_hopper: bool) -> None:
    """Answers jax's questions instead of the driver.

    Args:
      version: of cuDNN, as 91200 for 9.12.
    """
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: version)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda capability: is_at_least_hopper)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda capability: False)
