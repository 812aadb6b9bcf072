"""The hosts: vLLM (CUDA, CPU) and vllm-ascend. The only place that imports them."""
