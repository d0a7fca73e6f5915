"""Rollouts by a plain vLLM server, and its weights by files: what needs no NCCL.

`connection` asks the server and waits for it, `weights` writes the policy to a folder and has the
server load it, `completion_requests` makes a row a request and its reply a completion, `rollouts`
samples a batch through all three, `agreement` says whether what the server computes is the policy
at hand. `worker` is the file that the server itself is started with. May import the rest of
`rollout`, but not trl or vLLM: the server has an environment of its own.
"""
