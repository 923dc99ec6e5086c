"""Published rates of accelerators, by the name that a driver or libtpu gives them.

Dense rates, without sparsity. Sources, NVIDIA: the data sheets of H100, H200, A100, L40S, L4 and A10, that of DGX B200 divided by
its eight GPUs, and the white papers of the architectures Ada and Ampere GA102 (GeForce: bfloat16 with float32 accumulation).
Google: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.
"""

from __future__ import annotations

from typing import NamedTuple


class Rates(NamedTuple):
    """The published rates of one device."""

    bfloat16: float  # FLOP/s of products with bfloat16 operands and float32 sums
    float32: float | None  # FLOP/s of products in full float32 precision, without TF32; None where nothing is published
    memory: float  # bytes/s of the device's memory

    def products(self, dtype: str) -> float | None:
        """FLOP/s of products with operands of this dtype."""
        return {"bfloat16": self.bfloat16, "float32": self.float32}.get(dtype)


TPU = {
    "v4": Rates(275e12, None, 1200e9),
    "v5e": Rates(197e12, None, 819e9),
    "v5p": Rates(459e12, None, 2765e9),
    "v6e": Rates(918e12, None, 1640e9),
}
"""By generation."""

GPU = {
    "NVIDIA B200": Rates(2250e12, 75e12, 8000e9),
    "NVIDIA H200": Rates(989e12, 67e12, 4800e9),
    "NVIDIA H200 NVL": Rates(835e12, 60e12, 4800e9),
    "NVIDIA H100 80GB HBM3": Rates(989e12, 67e12, 3350e9),  # SXM
    "NVIDIA H100 NVL": Rates(835e12, 60e12, 3900e9),
    "NVIDIA H100 PCIe": Rates(756e12, 51e12, 2000e9),
    "NVIDIA A100-SXM4-80GB": Rates(312e12, 19.5e12, 2039e9),
    "NVIDIA A100 80GB PCIe": Rates(312e12, 19.5e12, 1935e9),
    "NVIDIA A100-SXM4-40GB": Rates(312e12, 19.5e12, 1555e9),
    "NVIDIA A100-PCIE-40GB": Rates(312e12, 19.5e12, 1555e9),
    "NVIDIA L40S": Rates(362e12, 91.6e12, 864e9),
    "NVIDIA L4": Rates(121e12, 30.3e12, 300e9),
    "NVIDIA A10": Rates(125e12, 31.2e12, 600e9),
    "NVIDIA GeForce RTX 4090": Rates(165.2e12, 82.6e12, 1008e9),
    "NVIDIA GeForce RTX 3090": Rates(71e12, 35.6e12, 936e9),
}
"""By `device_kind`."""

_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def published(device_kind: str) -> Rates | None:
    """The rates of a device that jax calls `device_kind`; None for one that is not in the tables, as every CPU."""
    return GPU.get(device_kind) or TPU.get(_TPU_KINDS.get(device_kind, ""))
