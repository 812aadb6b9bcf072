"""reference_int4: a quantisation that vLLM does not know, in torch alone, for any device.

A vLLM plugin of its own: `register` is the entry point that reference_int4-1.0.dist-info names, so
every vLLM process that has this directory on its path knows the method, workers included.

In a checkpoint: `weight_packed` uint8 [out, in / 2], two columns in a byte, the even one low; and
for each block of `rows` x `columns` a `weight_scale` float32 and a `weight_zero_point` uint8.
Loading replaces all three: the packed weight by its transpose (a view: not contiguous), the scale
by its contiguous transpose, and the zero points, a parameter, by `offset`, a buffer.
"""


def register() -> None:
    """Make the method known to vLLM. Called in every process; re-entrant."""
    from vllm.model_executor.layers.quantization import register_quantization_config

    from reference_int4.config import ReferenceInt4Config

    register_quantization_config("reference_int4")(ReferenceInt4Config)
