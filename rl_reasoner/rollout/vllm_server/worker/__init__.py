"""What runs inside a vLLM server; imports nothing of this package, whose environment is another."""
