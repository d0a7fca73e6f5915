"""A run as others get it: a folder for a hub, with its card and its audit; a policy as GGUF.

`folder` puts together what is published and pushes it, `card` writes what there is to say of it,
`gguf_export` makes the one file that llama.cpp and Ollama open. Stands above `audit`, for a run
that is not what it says it is is not published.
"""
