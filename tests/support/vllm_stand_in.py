"""A stand-in for vLLM's server: the part of its interface that rollouts use, one thread a request.

It loads the weights that it is told to and samples a row alone, so that what it replies follows
from weights, prompt and seed. `faults` says what goes wrong with which completion. With a `rank` it
takes adapters up to it, as vLLM does with `--enable-lora`, and reads their files when one is asked
for.
The real one is asked in tests/training/test_vllm_real.py.
"""

import copy
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rl_reasoner import open_policy


class StandIn(ThreadingHTTPServer):
    """A server of the policy in `folder`; `faults`: by the number of the completion, from 1."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        folder: str,
        faults: Mapping[int, str] | None = None,
        port: int = 0,
        room: int = 512,
        rank: int | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.faults, self.room, self.rank = folder, dict(faults or {}), room, rank
        self.lock = threading.Lock()
        self.count = 0
        self.met: Counter[str] = Counter()
        self.loaded: list[str] = []  # names of weights, in their order
        self.bodies: list[dict[str, Any]] = []
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """As after a start: the weights it was started with, and no name of them."""
        self.policy = open_policy(self.folder, device="cpu")
        self.version, self.busy = "default", 0
        self.adapters: dict[str, str] = {}  # their places, by name
        self.read: dict[str, Any] = {}  # those whose files were read

    def load(self, path: str) -> dict[str, str]:
        """As `worker.rl_reasoner_weights`, whose part it has."""
        if not Path(path).is_dir():
            return {"error": f"the server cannot read {path}"}
        new = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False).state_dict()
        self.policy.model.load_state_dict(new)
        self.loaded.append(Path(path).name)
        self.read.clear()
        return {"loaded": path}

    def load_adapter(self, name: str, path: str) -> tuple[int, Any]:
        """As `/v1/load_lora_adapter`: status and reply."""
        config = Path(path) / "adapter_config.json"
        if self.rank is None:
            return 404, {"detail": "Not Found"}
        if not config.is_file():
            return 404, {"error": {"message": f"No adapter found for {path}"}}
        if name in self.adapters:
            return 400, {"error": {"message": f"{name} has already been loaded"}}
        if json.loads(config.read_text())["r"] > self.rank:
            return 500, {"error": {"message": "greater than max_lora_rank"}}
        self.adapters[name] = path
        self.loaded.append(name)
        return 200, "Success"

    def model_of(self, name: str) -> Any:
        """What answers to a name; the files of an adapter are read when it is first asked for."""
        if name not in self.adapters:
            return self.policy.model
        if name not in self.read:
            base, place = copy.deepcopy(self.policy.model), self.adapters[name]
            with torch.random.fork_rng():  # peft draws weights before it reads these
                self.read[name] = PeftModel.from_pretrained(base, place).eval()
        return self.read[name]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """vLLM's reply to a request for a completion."""
        ids, logps, stop = [*body["prompt"]], [], None
        draws = torch.Generator().manual_seed(body["seed"])
        with self.lock, torch.no_grad():
            model = self.model_of(body.get("model", ""))
            while len(logps) < body["max_tokens"] and ids[-1] not in body["stop_token_ids"]:
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
                likely = (logits / (body["temperature"] or 1.0)).log_softmax(-1)
                if body["top_k"]:
                    least = likely.topk(body["top_k"]).values[-1]
                    likely = likely.where(likely >= least, -torch.inf).log_softmax(-1)
                sampled = torch.multinomial(likely.exp(), 1, generator=draws)
                token = int(sampled if body["temperature"] else likely.argmax())
                ids.append(token)
                logps.append(float(likely[token]))
                text = self.policy.tokenizer.decode(ids[len(body["prompt"]) :])
                if stop := next((one for one in body["stop"] if one in text), None):
                    break
        ended = stop is not None or ids[-1] in body["stop_token_ids"]
        choice = {
            "token_ids": ids[len(body["prompt"]) :],
            "logprobs": {"token_logprobs": logps},
            "finish_reason": "stop" if ended else "length",
            "stop_reason": stop,
        }
        return {"choices": [choice]}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server = self.server
        models: list[Any] = [{"id": "policy", "root": server.folder, "max_model_len": server.room}]
        models += [{"id": n, "root": at, "parent": "policy"} for n, at in server.adapters.items()]
        lora = None if server.rank is None else {"max_lora_rank": server.rank}
        known = {
            "/v1/models": {"data": models},
            "/server_info?config_format=json": {
                "vllm_config": {"lora_config": lora},
                "vllm_env": {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": lora is not None},
            },
            "/weight_info": {"weight_version": self.server.version},
        }
        self.answer(*((200, known[self.path]) if self.path in known else (404, {})))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"null")
        loads = self.path in ("/collective_rpc", "/v1/load_lora_adapter")
        if loads and self.server.busy > 0:  # not now
            self.server.busy -= 1
            return self.answer(503, {"error": {"message": "busy"}})
        if self.path == "/collective_rpc":
            try:
                return self.answer(200, {"results": [self.server.load(body["kwargs"]["folder"])]})
            except Exception as error:
                return self.answer(500, {"error": {"message": f"collective_rpc: {error}"}})
        if self.path == "/reset_prefix_cache":
            return self.answer(200, {"success": True})
        if self.path == "/update_weight_version":
            self.server.version = body["new_version"]
            return self.answer(200, {"success": True})
        if self.path == "/v1/load_lora_adapter":
            return self.answer(*self.server.load_adapter(body["lora_name"], body["lora_path"]))
        if self.path == "/v1/unload_lora_adapter":
            gone = self.server.adapters.pop(body["lora_name"], None)
            return self.answer(200 if gone else 404, "Success" if gone else {})
        return self.completion(body)

    def completion(self, body: dict[str, Any]) -> None:
        with self.server.lock:
            self.server.count += 1
            fault = self.server.faults.get(self.server.count, "")
            self.server.met[fault] += 1
        if fault == "restart":
            with self.server.lock:
                self.server.start()
        if fault == "forgotten":  # by someone else
            self.server.adapters.clear()
        if fault == "refused":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault.isdecimal():
            self.answer(int(fault), {"error": {"message": "injected"}})
        elif body.get("model", "policy") not in ("policy", *self.server.adapters):
            self.answer(404, {"error": {"message": f"The model {body['model']} does not exist"}})
        else:
            self.server.bodies.append(body)
            self.answer(200, self.server.complete(body))

    def answer(self, status: int, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        data = b"" if value is None else text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(
    folder: str,
    faults: Mapping[int, str] | None = None,
    *,
    port: int = 0,
    room: int = 512,
    rank: int | None = None,
) -> Iterator[StandIn]:
    """Inside, the stand-in serves; afterwards nothing listens at its address."""
    with StandIn(folder, faults, port, room, rank) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
