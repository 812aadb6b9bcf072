"""Reads what llm-compressor writes, and picks the method that it describes."""

from __future__ import annotations

from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.formats.fp8_block import Fp8Block
from vllm_layershard.models.quantization.formats.nvfp4 import Nvfp4
from vllm_layershard.models.quantization.formats.packed import Packed
from vllm_layershard.models.quantization.formats.scaled import Scaled
from vllm_layershard.models.quantization.fp8 import read_block
from vllm_layershard.models.quantization.ignored import read_ignored
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.quantization.uniform import uniform
from vllm_layershard.models.sources.config_file import ConfigFile, shown


def read_compressed_tensors(section: ConfigFile, names: Names) -> Quantization:
    """Read a `quantization_config` of method compressed-tensors.

    Source: vLLM 0.32, compressed_tensors.py, `CompressedTensorsConfig._get_scheme_from_parts`.

    Raises:
        ModelError: values that make no sense, or that the planner does not know.
    """
    group = _only_group(section)
    weights = group.section("weights")
    if weights is None:
        group.fail("weights", "is missing")
    inputs = group.section("input_activations")
    if group.strings("targets") != ("Linear",):
        group.fail("targets", "supported is ['Linear']")
    if group.get("output_activations") is not None:
        group.fail("output_activations", "quantised outputs are not supported yet")
    if weights.get("symmetric") is not True or weights.boolean("dynamic"):
        weights.fail("symmetric", "supported are symmetric weights that are quantised on disk")
    ignored = read_ignored(section, ("ignore",), "patterns", names)
    form = group.string("format") or section.string("format")
    kind = (form, weights.string("type"), weights.integer("num_bits", high=64))
    found: Format
    if kind == ("nvfp4-pack-quantized", "float", 4):
        found = _nvfp4(weights, inputs)
    elif kind in (("pack-quantized", "int", 4), ("pack-quantized", "int", 8)) and inputs is None:
        found = _packed(weights, kind[2])
    elif kind in (("float-quantized", "float", 8), ("naive-quantized", "float", 8)):
        found = _float8(weights, inputs)
    elif kind == ("int-quantized", "int", 8):
        found = _int8(weights, inputs)
    else:
        group.fail(
            "weights",
            f"format {shown(form)} with weights of type {shown(kind[1])} in {kind[2]} bits "
            f"{'' if inputs is None else 'and quantised activations '}is not supported yet; "
            "supported are float-quantized (fp8), int-quantized (int8), pack-quantized (int4 and "
            "int8 weights alone) and nvfp4-pack-quantized",
        )
    return uniform(found, ignored)


def _only_group(section: ConfigFile) -> ConfigFile:
    groups = section.section("config_groups")
    found = []
    for name in groups.values if groups is not None else ():
        assert groups is not None, "it has names"
        group = groups.section(name)
        targets = group.strings("targets") if group is not None else ()
        # Groups of attention modules only describe the cache's scales.
        if group is not None and not (len(targets) == 1 and targets[0].endswith("Attention")):
            found.append(group)
    if len(found) != 1:
        section.fail(
            "config_groups", f"exactly one group of linears is supported, not {len(found)}"
        )
    return found[0]


def _packed(weights: ConfigFile, bits: int) -> Packed:
    if weights.string("strategy") != "group":
        weights.fail("strategy", "supported is 'group' with pack-quantized")
    if weights.get("actorder") not in (None, "weight", "static"):
        weights.fail("actorder", "vLLM no longer supports an activation order within groups")
    return Packed(
        bits=bits,
        group=weights.integer("group_size", low=32, high=1 << 16),
    )


def _float8(weights: ConfigFile, inputs: ConfigFile | None) -> Fp8Block | Scaled:
    strategy = weights.string("strategy")
    static = inputs is not None and not inputs.boolean("dynamic")
    if strategy == "block" and not static:
        block = read_block(weights, "block_structure")
        return Fp8Block(block=block, scale="weight_scale", refines=False)
    if strategy not in ("tensor", "channel"):
        weights.fail("strategy", f"{shown(strategy)} is not supported with fp8 weights")
    if static and inputs is not None and inputs.string("strategy") != "tensor":
        inputs.fail("strategy", "static activations are supported with one scale a tensor only")
    return Scaled(
        name=f"compressed_tensors_fp8_{strategy}",
        dtype="float8_e4m3fn",
        by_row=strategy == "channel",
        static=static,
    )


def _int8(weights: ConfigFile, inputs: ConfigFile | None) -> Scaled:
    dynamic = inputs is not None and inputs.boolean("dynamic")
    if weights.string("strategy") != "channel" or not dynamic:
        weights.fail("strategy", "supported are int8 rows ('channel') with dynamic activations")
    return Scaled(
        name="compressed_tensors_int8_channel",
        dtype="int8",
        by_row=True,
        static=False,
    )


def _nvfp4(weights: ConfigFile, inputs: ConfigFile | None) -> Nvfp4:
    if weights.integer("group_size", low=1, high=1 << 16) != 16:
        weights.fail("group_size", "nvfp4 has groups of 16")
    return Nvfp4(
        name="compressed_tensors_nvfp4",
        group=16,
        weight="weight_packed",
        total="weight_global_scale",
        inputs="input_global_scale",
        weight_only=inputs is None,
    )
