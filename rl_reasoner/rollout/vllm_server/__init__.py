"""Rollouts by a plain vLLM server, and its weights by files: what needs no NCCL.

`connection` asks the server and waits for it. `folder` is what both see. `weights` writes the
policy to it and has the server load it; `adapters` does that with an adapter by itself.
`completion_requests` makes rows requests, part by part where something answers, and replies
completions, `rollouts` samples a batch through all of them, `agreement` says whether what the
server computes is the policy at hand. `worker` is the file that the server itself is started with.
May import the rest of `rollout`, but not trl or vLLM: the server has an environment of its own.
"""
