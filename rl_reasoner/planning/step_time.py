"""Seconds of a batch by part: a roofline for sampling, FLOPs for training, bytes for networks."""

from rl_reasoner.planning.gpus import ASSUMED, Assumed, Gpu
from rl_reasoner.planning.load import StepLoad
from rl_reasoner.planning.shapes import Shape


def seconds(shape: Shape, gpu: Gpu, load: StepLoad, a: Assumed = ASSUMED) -> dict[str, float]:
    """Seconds of a batch by part: sampling, training, log-probs, gathering, weights to the engines.

    Training is all optimizer steps on the batch (`load.iterations`).
    Gathering (shards over the network) is counted as far as it is longer than what it hides behind.
    """
    sampling = _decoding(shape, gpu, load, a)
    tokens = load.rows * load.mean + load.prompts
    flops = pass_flops(shape, load.mean) * tokens
    use = a.expert_use if shape.experts else a.dense_use
    pieces = (load.batch or load.rows) * load.model / load.gpus
    idle = (load.pipeline - 1) / (pieces + load.pipeline - 1)
    one = flops / (load.gpus * gpu.flops * use) / (1 - idle)
    training = 3 * one * load.iterations * load.trained
    parts = {"sampling": sampling, "training": training, "log_probs": load.passes * one}
    if load.shards > 1:
        rows = load.rows / load.gpus
        gathers = 3 * load.iterations * max(1.0, rows / load.micro) + load.passes
        apart = gathers * 2 * shape.total / (gpu.network * a.network_use)
        parts["gathering"] = max(0.0, apart - training - parts["log_probs"])
    parts["weights_to_engines"] = (
        2 * shape.total / a.refit if load.engine > 1 or load.sampler or load.servers else 0
    )
    return parts


def pass_flops(shape: Shape, length: float) -> float:
    """FLOPs of a forward pass for a token: 2 a parameter, and attention's 4 x width x context.

    Kaplan et al., arXiv 2001.08361, section 2.1; a causal token sees half of `length` on average.
    """
    return 2 * shape.active + 4 * shape.layers * shape.hidden * length / 2


def _decoding(shape: Shape, gpu: Gpu, load: StepLoad, a: Assumed) -> float:
    """Seconds until the longest completion ends; each step reads all weights and the alive rows'
    keys and values (the roofline of Pope et al., arXiv 2211.05102), or computes, if that is longer.

    Rows that are alive: their mean length over the longest, on average over the steps. Nearly all
    experts are read: a batch's tokens choose differently.
    """
    engines = max(1.0, load.sampling_gpus / load.engine)
    alive = load.rows / engines * min(1.0, load.mean / load.longest)
    context = load.mean / 2 + load.prompts / max(1, load.rows)
    read = 2 * shape.total / load.engine + alive * context * shape.cache / load.engine
    reading = read / (gpu.bandwidth * a.bandwidth_use)
    computing = 2 * shape.active * alive / load.engine / (gpu.flops * 0.5)
    far = a.far_layer_s if load.engine > a.server else 0.0
    return load.longest * (max(reading, computing) + shape.layers * (a.layer_s + far))
