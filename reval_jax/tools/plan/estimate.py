"""Estimates the time of an update and of generation from operation counts, published peaks and stated assumptions."""

from __future__ import annotations

from typing import NamedTuple

from reval_jax import algorithms, batch, model
from reval_jax import config as config_lib
from reval_jax.tools.plan import machines

UTILIZATION = 0.5  # of a chip's published peak, while it computes
LINK_UTILIZATION = (
    0.5  # of a chip's published bandwidth to the others, while it communicates; of a GPU's to other hosts too
)
MEMORY_UTILIZATION = 0.5  # of a chip's published memory bandwidth, while it decodes
SUM_SECONDS = 1e-5  # of one sum over the tensor axis while decoding, which latency dominates


class UpdateCost(NamedTuple):
    """Work and time of one update."""

    flops: float  # model FLOPs: forward, and twice that backward
    executed_flops: float  # with rematerialisation
    compute_seconds: float
    link_seconds: float
    tokens: int  # of the batch
    assumptions: str

    @property
    def seconds(self) -> float:
        """Computation and communication, not overlapped."""
        return self.compute_seconds + self.link_seconds

    @property
    def tokens_per_s(self) -> float:
        """Of the whole slice."""
        return self.tokens / self.seconds


class AxisSizes(NamedTuple):
    """Sizes of the learner's mesh axes."""

    data: int
    fsdp: int
    tensor: int


def axes(config: config_lib.Config, num_devices: int) -> AxisSizes:
    """Axis sizes of the learner's mesh (as `mesh.make` computes them)."""
    settings = config.mesh
    fsdp = settings.fsdp if settings.fsdp != -1 else max(1, num_devices // (settings.data * settings.tensor))
    return AxisSizes(settings.data, fsdp, settings.tensor)


def layer_weights(architecture: model.Architecture) -> int:
    """Number of weights in the matrices of all layers."""
    heads = 2 * architecture.num_heads + 2 * architecture.num_kv_heads
    per_layer = architecture.width * (heads * architecture.head_size + 3 * architecture.mlp_width)
    return architecture.num_layers * per_layer


def forward_flops(architecture: model.Architecture, tokens: int, response_tokens: int) -> tuple[float, float, float]:
    """Forward FLOPs of one trajectory: the layers' products, causal attention, and the head on the response."""
    products = 2.0 * layer_weights(architecture) * tokens
    attention = 2.0 * architecture.num_layers * tokens**2 * architecture.num_heads * architecture.head_size
    return products, attention, 2.0 * architecture.width * architecture.vocab_size * response_tokens


def update_cost(
    architecture: model.Architecture, topology: machines.Machine, num_devices: int, config: config_lib.Config
) -> UpdateCost:
    """Cost of an update on trajectories of maximum length."""
    chip, mesh = topology.chip, axes(config, num_devices)
    trajectories, tokens = algorithms.choose(config).step_size, config.max_tokens
    products, attention, head = forward_flops(architecture, tokens, config.rollout.max_response_tokens)
    recomputed = {"none": (0, 0), "dots": (0, 0), "attention": (1, 0), "full": (1, 1)}[config.model.remat]
    # Flash attention: two products forward, five backward. The head recomputes its logits in the backward pass.
    executed = trajectories * (products * (3 + recomputed[0]) + attention * (3.5 + recomputed[1]) + head * 4)
    shards = mesh.data * mesh.fsdp
    shape = batch.shape_of(batch.row_length(tokens), shards, limits=batch.limits(config, step_size=trajectories))
    rows = shape.rows // shards
    micro_batches = -(-trajectories // (shards * rows * max(1, shape.tokens // tokens)))
    # Weights and gradients go to all hosts, sums over the tensor axis only to devices of the same one.
    slower = chip.link_bandwidth / topology.network_bandwidth
    sent = micro_batches * _bytes_per_micro_batch(
        architecture, mesh, rows * shape.tokens, 2 + recomputed[0], config, slower=slower
    )
    between_hosts = f" of a host and {topology.network_bandwidth / 1e9:.0f} between hosts" if slower > 1 else ""
    return UpdateCost(
        flops=trajectories * 3 * (products + attention + head),
        executed_flops=executed,
        compute_seconds=executed / (num_devices * chip.peak_flops * UTILIZATION),
        link_seconds=sent / (chip.link_bandwidth * LINK_UTILIZATION),
        tokens=trajectories * tokens,
        assumptions=(
            f"{trajectories} trajectories, every one {tokens} tokens long (task.max_prompt_tokens + "
            f"rollout.max_response_tokens); {topology.generation} at {UTILIZATION:.0%} of its published "
            f"{chip.peak_flops / 1e12:.0f} TFLOP/s and {LINK_UTILIZATION:.0%} of {chip.link_bandwidth / 1e9:.0f} GB/s between "
            f"{topology.unit}s{between_hosts}, not overlapped; no reference pass, no host work"
        ),
    )


def generate_seconds(
    architecture: model.Architecture, topology: machines.Machine, num_devices: int, config: config_lib.Config
) -> float:
    """Seconds to sample a round's responses, all `rollout.max_response_tokens` long.

    Each decode step reads the weights and the whole cache of all slots from memory; prefill is left out.
    """
    chips, tensor, rollout = topology.host.num_chips, config.mesh.tensor, config.rollout
    hosts = max(1, num_devices // chips)
    waves = -(-(-(-rollout.prompts_per_round // hosts) * rollout.samples_per_prompt) // rollout.decode_slots)
    size = 4 if config.model.compute_dtype == "float32" else 2
    weights = (layer_weights(architecture) + architecture.width * architecture.vocab_size) / tensor
    kv_heads = architecture.num_kv_heads / (tensor if architecture.num_kv_heads % tensor == 0 else 1)
    cache_per_token = 2 * architecture.num_layers * kv_heads * architecture.head_size
    cache = rollout.decode_slots * tensor / chips * config.max_tokens * cache_per_token
    sum_seconds = 2 * architecture.num_layers * SUM_SECONDS if tensor > 1 else 0.0
    seconds = size * (weights + cache) / (topology.chip.hbm_bandwidth * MEMORY_UTILIZATION) + sum_seconds
    return waves * rollout.max_response_tokens * seconds


def _bytes_per_micro_batch(
    architecture: model.Architecture,
    mesh: AxisSizes,
    tokens: int,
    gathers: int,
    config: config_lib.Config,
    *,
    slower: float,
) -> float:
    """Bytes that a device receives: gathered weights, scattered gradients, and sums of activations over the tensor axis.

    Args:
      tokens: in the rows of a device.
      gathers: number of times that the weights of each layer are gathered.
      slower: the factor by which gathered weights and scattered gradients take longer than the sums; they count as so many more.
    """
    size = 4 if config.model.compute_dtype == "float32" else 2
    fsdp_share, tensor_share = (mesh.fsdp - 1) / mesh.fsdp, (mesh.tensor - 1) / mesh.tensor
    head = architecture.width * architecture.vocab_size
    weights = layer_weights(architecture) * (gathers * size + 4) + head * (size + 4)
    # Two sums forward and two backward per layer, each a reduce-scatter and an all-gather; the forward two again with remat.
    sums = architecture.num_layers * (2 * gathers) * 2 * tokens * architecture.width * size
    return slower * (weights / mesh.tensor * fsdp_share) + sums * tensor_share
