"""What vllm-ascend alone asks of a sharded model."""
