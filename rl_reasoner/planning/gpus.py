"""What is known of GPUs (data sheets), and what no data sheet says and is assumed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Data sheet of a GPU: dense bf16 FLOP/s, memory bytes and bytes/s, network bytes/s a GPU."""

    flops: float
    memory: float
    bandwidth: float
    network: float


GPUS = {
    "A100": Gpu(312e12, 80e9, 2.04e12, 25e9),
    "B200": Gpu(2250e12, 180e9, 7.7e12, 50e9),
    "H100": Gpu(989e12, 80e9, 3.35e12, 50e9),
    "H20": Gpu(148e12, 96e9, 4.0e12, 50e9),
    "H200": Gpu(989e12, 141e9, 4.8e12, 50e9),
    "H800": Gpu(989e12, 80e9, 3.35e12, 50e9),
    "L40S": Gpu(362e12, 48e9, 0.864e12, 12.5e9),
}
"""NVIDIA's data sheets; the network is that of a usual server: 200 (A100), 100 (L40S), else 400
Gbit/s a GPU."""


@dataclass(frozen=True)
class Assumed:
    """What no data sheet says. The first six were fitted to published runs, see the module."""

    dense_use: float = 0.30
    """share of the FLOP/s that training a dense policy reaches (MFU), pipeline bubbles apart"""
    expert_use: float = 0.06
    """the same for a mixture of experts, of its active FLOPs"""
    bandwidth_use: float = 0.6
    """share of the memory's bandwidth that decoding reaches"""
    layer_s: float = 2e-4
    """seconds a layer takes in a decoding step beside reading: kernels, all-reduce in a server"""
    far_layer_s: float = 1e-4
    """the same, more, where an engine's GPUs are in several servers"""
    refit: float = 20e9
    """bytes/s at which new weights reach the engines, over all"""
    network_use: float = 0.6
    """share of the network's bandwidth that gathering shards reaches"""
    mean_share: float = 0.5
    """mean length of a completion over max_tokens"""
    prompt: int = 256
    """tokens of a prompt"""
    server: int = 8
    """GPUs in a server"""


ASSUMED = Assumed()
