"""`PolicyWeights`: what a vLLM server's workers are extended by, to load the files of a policy.

    PYTHONPATH=…/rollout/vllm_server/worker vllm serve … \
        --worker-extension-cls rl_reasoner_weights.PolicyWeights

vLLM's own `reload_weights` does the work. Two things are added. A folder that is not there, or is
of another model, is told before weights are touched: vLLM is not whole after a load that broke off.
And on a CPU vLLM 0.32 keeps a packed copy of the output head, and does not make it anew where the
head is the input embedding. This one file is all that a server needs: it imports neither torch nor
the rest of this package.
"""

import json
from pathlib import Path
from typing import Any

_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "moe_intermediate_size"),
)


class PolicyWeights:
    """Mixed into vLLM's worker class; called over `/collective_rpc`."""

    def load_policy(self, folder: str) -> dict[str, Any]:
        """Load the weights in `folder`; what speaks against it is in `error`."""
        worker: Any = self
        try:
            config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        except OSError as error:
            return {"error": f"the server cannot read {folder}: {error.strerror}"}
        served = worker.model_runner.vllm_config.model_config.hf_text_config
        for name in _SIZES:
            ours, theirs = config.get(name), getattr(served, name, None)
            if ours is not None and theirs is not None and ours != theirs:
                return {"error": f"it serves a model with {name} {theirs}, the policy has {ours}"}
        reload(worker, weights_path=folder)
        return {"loaded": folder}


def reload(worker: Any, **weights: Any) -> None:
    """vLLM's `reload_weights` of a worker, and on a CPU the output head packed anew."""
    worker.reload_weights(**weights)
    for module in worker.model_runner.get_model().modules():
        if type(module).__name__ == "ParallelLMHead" and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)
