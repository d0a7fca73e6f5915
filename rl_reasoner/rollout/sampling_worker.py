"""The process of `SamplingProcess`: opens a policy and its tools, samples order after order.

Requests and replies are JSON lines on the standard streams; what libraries print goes to standard
error. It ends when its standard input does, also in the middle of an order: whoever asked is gone.
"""

import base64
import json
import os
import pickle
import queue
import sys
import threading
from contextlib import ExitStack
from typing import Any

from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.workers import print_as_errors

Requests = queue.SimpleQueue[dict[str, Any]]


def _listen(requests: Requests) -> None:
    """Read requests until the input ends, and the process with it."""
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)


def _replies() -> int:
    """The standard output for replies alone: what is printed goes to standard error."""
    output = os.dup(1)
    print_as_errors()
    return output


def _answer(output: int, reply: dict[str, Any]) -> None:
    data = memoryview(json.dumps(reply).encode() + b"\n")
    while data:
        data = data[os.write(output, data) :]


def main() -> None:
    """Open the policy, then sample order after order."""
    output, requests = _replies(), Requests()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    opening = requests.get()
    policy: Any = None
    while True:
        request = requests.get()
        try:
            policy = policy or _Policy(opening)
            order = pickle.loads(base64.b64decode(request["order"]))  # noqa: S301, of who started it
            sampled = policy.sample(order)
            reply = {"sampled": base64.b64encode(pickle.dumps(sampled)).decode()}
        except Exception as error:
            reply = {"failed": f"{type(error).__name__}: {error}"}
        _answer(output, reply)


class _Policy:
    """The policy that was sent, what answers it, and its routers where they are asked for."""

    def __init__(self, opening: dict[str, Any]) -> None:
        load_for_good("rl_reasoner.rollout.sampling_order")
        load_for_good("rl_reasoner.policy.fp8.layers")  # experts in FP8 are computed by name
        import torch

        from rl_reasoner.machine import choices
        from rl_reasoner.moe.autocast import autocast_experts
        from rl_reasoner.policy.fp8.layers import fp8
        from rl_reasoner.rollout.decode_pass import proved
        from rl_reasoner.rollout.shared_policy import opened
        from rl_reasoner.rollout.tool_turns import ToolUse

        torch.set_num_threads(opening["threads"])
        choices.adopt(opening["choices"])
        modules = base64.b64decode(opening["modules"])
        self.opened = opened(modules, opening["file"], opening["size"], opening["device"])
        autocast_experts(self.opened.model)  # as the trainer's process does
        proved(self.opened.model, opening["proved"])
        self.routing: Any = None
        self.answering = pickle.loads(base64.b64decode(opening["answering"]))  # noqa: S301, likewise
        self.open = ExitStack()  # never closed: processes of tools end with this one
        if multiplied := opening.get("fp8"):
            self.open.enter_context(fp8(self.opened.model, *multiplied))
        if isinstance(self.answering, ToolUse):
            self.open.enter_context(self.answering.running())

    def sample(self, order: Any) -> Any:
        from rl_reasoner.moe.routing import Routing
        from rl_reasoner.rollout.sampling_order import carry_out

        if order.routed and self.routing is None:
            self.routing = Routing(self.opened.model)
        self.opened.refresh()
        return carry_out(self.opened.model, order, self.routing, self.answering)


if __name__ == "__main__":
    main()
