"""A device without hardware: streams that do their work late, in any order that events allow.

`Accelerator` stands in the place of `torch.cuda` or `torch.npu` in the product's own StreamDevice
and NpuDevice. What it does not show: kernels that are wrong, memory that an allocator gives away
while another stream reads it, and time.
"""
