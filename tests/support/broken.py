"""Two hundred and more broken inputs by name: each is arguments, made in an empty directory.

Generated ones say what was done to which key of which bundled config; the others are made by hand.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from checkpoints import deepseek, header_of, small_config, write, write_raw
from vllm_layershard.models.checkpoint.weight_map import INDEX
from vllm_layershard.models.sources import source
from vllm_layershard.models.sources.beside import DESCRIPTION

Case = Callable[[Path], list[str]]
"""Makes the broken thing in a directory and gives the arguments of `layershard`."""

MISSING = object()
BAD_SIZES = {
    "missing": MISSING,
    "null": None,
    "negative": -1,
    "minus a lot": -(10**40),
    "huge": 10**30,
    "just past 64 bits": 1 << 64,
    "a float": 7168.0,
    "a fraction": 0.5,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "a string": "7168",
    "an empty string": "",
    "a boolean": True,
    "a list": [7168],
    "an object": {"value": 7168},
}
SIZES = {
    "deepseek-ai/DeepSeek-V3": (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "vocab_size",
        "num_attention_heads",
        "kv_lora_rank",
        "v_head_dim",
        "num_experts_per_tok",
    ),
    "Qwen/Qwen3-235B-A22B": ("num_hidden_layers", "hidden_size", "num_attention_heads"),
}
V3 = "deepseek-ai/DeepSeek-V3"
DEEP = "[" * 100_000
CONTRADICTIONS: dict[str, tuple[str, dict[str, object]]] = {
    "more experts chosen than there are": (V3, {"num_experts_per_tok": 257}),
    "no experts but a choice among them": (V3, {"n_routed_experts": 0}),
    "heads that do not divide": ("Qwen/Qwen3-32B", {"num_key_value_heads": 7}),
    "layer types of other layers": (
        "meta-llama/Meta-Llama-3.1-8B",
        {"layer_types": ["full_attention"] * 3},
    ),
    "a layer type nobody knows": (
        "meta-llama/Meta-Llama-3.1-8B",
        {"layer_types": ["quantum_attention"] * 32},
    ),
    "an indexer without its rank": ("deepseek-ai/DeepSeek-V3.2", {"q_lora_rank": None}),
    "an indexer without heads": ("deepseek-ai/DeepSeek-V3.2", {"index_n_heads": None}),
    "a pattern that is a number": ("deepseek-ai/DeepSeek-V3.2", {"index_topk_pattern": 7}),
    "another activation": (V3, {"hidden_act": "gelu"}),
    "no activation": (V3, {"hidden_act": None}),
    "an activation in a list": (V3, {"hidden_act": ["silu"]}),
    "a dtype nobody knows": (V3, {"torch_dtype": "float7"}),
    "a dtype that is a number": (V3, {"torch_dtype": 16}),
    "no architectures": (V3, {"architectures": MISSING}),
    "architectures as a string": (V3, {"architectures": "DeepseekV3ForCausalLM"}),
    "an empty list of architectures": (V3, {"architectures": []}),
    "an architecture that is null": (V3, {"architectures": [None]}),
    "an architecture nobody knows": (V3, {"architectures": ["GPT9ForCausalLM"]}),
    "an architecture with control characters": (V3, {"architectures": ["\x1b[31mRed\x07\n"]}),
    "an architecture with a lone surrogate": (V3, {"architectures": ["\ud800"]}),
    "a very long architecture": (V3, {"architectures": ["A" * 100_000]}),
    "another family's model_type": (V3, {"model_type": "llama"}),
    "a model_type that is a list": (V3, {"model_type": ["deepseek_v3"]}),
    "no model_type": (V3, {"model_type": MISSING}),
    "quantisation in a list": (V3, {"quantization_config": [128]}),
    "quantisation as a string": (V3, {"quantization_config": "fp8"}),
    "quantisation without a method": (V3, {"quantization_config": {}}),
    "a method nobody knows": (V3, {"quantization_config": {"quant_method": "int0"}}),
    "a method that is a number": (V3, {"quantization_config": {"quant_method": 8}}),
    "compression": (V3, {"quantization_config": None, "compression_config": {"bits": 0}}),
    **{
        f"weight_block_size {value!r}": (
            V3,
            {
                "quantization_config": {
                    "quant_method": "fp8",
                    "activation_scheme": "dynamic",
                    "weight_block_size": value,
                }
            },
        )
        for value in ([], [128], [128, 0], [128, -1], [128, 128, 128], ["128", 128], 128, [1e2, 1])
    },
    **{
        f"awq with {key} {value!r}": (
            "Qwen/Qwen3-32B",
            {
                "quantization_config": {
                    "quant_method": "awq",
                    "bits": 4,
                    "group_size": 128,
                    key: value,
                }
            },
        )
        for key, value in (
            ("bits", "4"),
            ("group_size", -2),
            ("group_size", 10**30),
            ("modules_to_not_convert", {"a": 1}),
            ("modules_to_not_convert", ["a"] * 4096),
        )
    },
    **{
        f"compressed-tensors with {key} {str(value)[:40]!r}": (
            "Qwen/Qwen3-32B",
            {"quantization_config": {"quant_method": "compressed-tensors", key: value}},
        )
        for key, value in (
            ("config_groups", []),
            ("config_groups", {"a": 1}),
            ("config_groups", {"a": {"targets": "Linear"}}),
            ("config_groups", {"a": {"targets": ["Linear"], "weights": {"symmetric": True}}}),
            ("format", ["int-quantized"]),
        )
    },
    "skipped modules as a string": (
        V3,
        {
            "quantization_config": {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": "lm_head",
            }
        },
    ),
}
FILES = {
    "an empty file": b"",
    "white space": b"  \n\t ",
    "null": b"null",
    "a number": b"7",
    "a string": b'"config"',
    "a list": b"[{}]",
    "an empty object": b"{}",
    "cut short": b'{"architectures": ["Deep',
    "two objects": b"{}{}",
    "a comment": b"// config\n{}",
    "single quotes": b"{'architectures': []}",
    "a trailing comma": b'{"a": 1,}',
    "HTML": b"<!doctype html><title>404</title>",
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "latin-1": '{"name": "caf\xe9"}'.encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NULs": b"\0" * 4096,
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.",
    "a ZIP": b"PK\x03\x04" + b"\xff" * 64,
    "deep lists": DEEP.encode(),
    "deep objects": b'{"a":' * 100_000,
    "a number of 5000 digits": b'{"num_hidden_layers": ' + b"9" * 5000 + b"}",
    "three hundred thousand empty lists": b"[" + b"[]," * 340_000 + b"[]]",
    "lists for eight megabytes": b"[" + b"[0]," * 2_000_000 + b"[]]",
    "texts for eight megabytes": b"[" + b'"0123456789abcdef",' * 440_000 + b"0]",
    "a wide character after eight megabytes": b'{"a": "' + b"x" * 8_000_000 + b'\xf0\x9f\x98\x80"}',
    "nine megabytes": b'{"a": "' + b"x" * (9 << 20) + b'"}',
    "three megabytes": b'{"a": "' + b"x" * (3 << 20) + b'"}',
    "control characters in a string": b'{"a": "\x01"}',
}
FLAGS = [
    "--tp 0",
    "--tp -1",
    "--tp two",
    "--tp 1.5",
    "--tp ''",
    "--tp 3",
    "--tp 999999999999999999999999999999",
    f"--dp {10**30}",
    f"--dp {'9' * 5000}",
    "--dp 0",
    "--dp 1",
    "--dp 1e3",
    "--dp 4097",
    "--dp 512 --ep",
    "--pcp 0",
    "--pcp NaN",
    "--pp 0",
    "--pp 62 --dp 2",
    "--pp 61 --dp 2",
    "--pp 4096 --dp 4096",
    "--prefetch-step -1",
    "--prefetch-step 65",
    "--prefetch-step 61",
    f"--prefetch-step {10**40}",
    "--layer-stride 0",
    "--layer-stride 100",
    f"--layer-stride {10**30}",
    "--placement ''",
    "--placement stripped",
    "--placement striped --transport broadcast",
    "--placement striped --dp 16",
    "--transport ''",
    "--transport push",
    "--transport pull --dp 16 --ep",
    "--slice-bytes -1",
    "--slice-bytes 1M",
    f"--slice-bytes -{10**40}",
    f"--slice-bytes {10**400}",
    "--placement $'\\x1b[2J'",
    "--hardware ''",
    "--hardware H9000",
    "--hardware '../../etc/passwd'",
    "--tokens 0",
    "--tokens -1",
    "--tokens 1e400",
    "--tokens 999999999999g",
    "--tokens ''",
    "--tokens 1.5",
    "--tokens 8kk",
    "--tokens ٣",
    "--kv-cache-dtype ''",
    "--kv-cache-dtype int2",
    "--kv-cache-dtype '\x1b[31mred'",
    "--layers ''",
    "--layers ,",
    "--layers ' '",
    "--layers o_proj,o_proj",
    "--layers o_proj,self_attn.o_proj",
    "--layers nonsense",
    "--layers 'o_proj\x00x'",
    "--layers 'o_proj\nq_b_proj'",
    "--layers experts",
    "--layers kv_b_proj",
    f"--layers {'x' * 100_000}",
    f"--layers {','.join(f'name{i}' for i in range(2000))}",
    "--nonsense",
    "--'\x1b[31m'",
    "extra words",
]
CHECKS = [
    "",
    "[",
    "null",
    "{}",
    "[]",
    "[null]",
    '[""]',
    '"o_proj"',
    "NaN",
    DEEP,
    "9" * 5000,
    '{"layer_sharding": null}',
    '{"layer_sharding": "o_proj"}',
    '{"layer_sharding": {}}',
    '{"layer_sharding": {"layers": null}}',
    '{"layer_sharding": {"layers": ["o_proj"], "prefetch_step": 1e400}}',
    '{"layer_sharding": {"layers": ["o_proj"], "prefetch_step": NaN}}',
    '{"layer_sharding": {"layers": ["o_proj"], "report_dir": ""}}',
    '{"layer_sharding": {"layers": ["o_proj"], "\\u001b[31m": 1}}',
    '{"layer_sharding": {"layers": ["\\ud800"]}}',
    "@",
    "@/no/such/file",
    "@/",
    "@/dev/null",
    "@/proc/self/mem",
]
NAMES = [
    "",
    " ",
    ".",
    "/",
    "//",
    "..",
    "~nobody-of-that-name",
    "nonsense",
    "a/b/c",
    "https://huggingface.co/deepseek-ai/DeepSeek-V3",
    "some/model",
    "some/mo del",
    "some/\x1b[31mmodel",
    "/no/such/path",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "/etc/passwd",
    "nothing.json",
    "x" * 5000,
    "x/" * 2500,
    "\ud800",
    "a\nb",
    "deepseek-ai\\DeepSeek-V3",
    "../" * 40 + "etc/passwd",
]

SMALL = {"a": ("BF16", [4, 4]), "b": ("F32", [2])}
GOOD, GOOD_BYTES = header_of(SMALL)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> bytes:
    """A header of one tensor."""
    value = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return json.dumps({"a": value}).encode()


HEADERS: dict[str, tuple[bytes, int]] = {
    "no object": (b"[]", 0),
    "null": (b"null", 0),
    "empty": (b"", 0),
    "cut short": (GOOD[:-3], GOOD_BYTES),
    "something after it": (GOOD + b"x", GOOD_BYTES),
    "not UTF-8": (b'{"\xff": 1}', 0),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, GOOD_BYTES),
    "deep": (DEEP.encode(), 0),
    "deep within a tensor": (b'{"a":{"dtype":"F32","shape":' + DEEP.encode(), 0),
    "deep metadata": (b'{"__metadata__":' + DEEP.encode(), 0),
    "metadata of numbers": (b'{"__metadata__":{"a":1}}', 0),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', 0),
    "metadata in a list": (b'{"__metadata__":[1]}', 0),
    "a tensor twice": (GOOD[:-1] + b"," + GOOD[1:], GOOD_BYTES),
    "a tensor that is null": (b'{"a":null}', 0),
    "a tensor that is empty": (b'{"a":{}}', 0),
    "a key twice in a tensor": (
        b'{"a":{"shape":[2],"dtype":"F32","dtype":"F32","data_offsets":[0,8]}}',
        8,
    ),
    "another key in a tensor": (
        b'{"a":{"shape":[2],"dtype":"F32","data_offsets":[0,8],"extra":0}}',
        8,
    ),
    "a dtype nobody knows": (entry("F7"), 8),
    "a dtype in lower case": (entry("f32"), 8),
    "a dtype that is a number": (entry(32), 8),
    "a very long dtype": (entry("F" * 5000), 8),
    "a negative size": (entry(shape=[-2]), 8),
    "a size that is a float": (entry(shape=[2.0]), 8),
    "a size that is true": (entry(shape=[True, 2]), 8),
    "a size of 5000 digits": (entry().replace(b"[2]", b"[" + b"9" * 5000 + b"]"), 8),
    "sizes that overflow": (entry(shape=[1 << 62, 1 << 62]), 8),
    "a size with a leading zero": (entry().replace(b"[2]", b"[02]"), 8),
    "commas for sizes": (entry().replace(b"[2]", b"[,,]"), 8),
    "very many sizes": (entry(shape=[1] * 200 + [2]), 8),
    "a shape that is null": (entry(shape=None), 8),
    "one offset": (entry(offsets=[8]), 8),
    "three offsets": (entry(offsets=[0, 4, 8]), 8),
    "a negative offset": (entry(offsets=[-8, 0]), 8),
    "offsets backwards": (entry(offsets=[8, 0]), 8),
    "an offset beyond the file": (entry(offsets=[8, 16]), 8),
    "an offset beyond everything": (entry(offsets=[0, 1 << 65]), 8),
    "offsets that are strings": (entry(offsets=["0", "8"]), 8),
    "fewer bytes than the shape takes": (entry(shape=[4]), 8),
    "more bytes than the shape takes": (entry(shape=[1]), 8),
    "half a byte": (entry("F4", [3], [0, 1]), 1),
    "data that nobody speaks of": (GOOD, GOOD_BYTES + 1),
    "less data than it speaks of": (GOOD, GOOD_BYTES - 1),
    "a hole": (GOOD.replace(b"[32,40]", b"[40,48]"), GOOD_BYTES + 8),
    "an overlap": (GOOD.replace(b"[32,40]", b"[24,32]"), GOOD_BYTES - 8),
    "a name with control characters": (
        entry("F7").replace(b'"a"', b'"\\u001b[31m\\u0007"'),
        8,
    ),
    "a lone surrogate": (entry("F7").replace(b'"a"', b'"\\ud800"'), 8),
    "a bad escape": (entry().replace(b'"a"', b'"\\x"'), 8),
    "a very long name": (entry("F7").replace(b'"a"', b'"' + b"a" * 1_000_000 + b'"'), 8),
    "lists for eight megabytes": (b'{"a":[' + b"[]," * 2_790_000, 0),
    "tensors for eight megabytes": (
        b"{"
        + b",".join(
            b'"%x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}' % i for i in range(140_000)
        ),
        4,
    ),
    "metadata for eight megabytes": (b'{"__metadata__":{' + b'"a":"b",' * 1_040_000, 0),
}
LENGTHS = {"zero": 0, "two to the 63rd": 1 << 63, "all ones": (1 << 64) - 1, "100 MB": 100 << 20}


def configs() -> Iterator[tuple[str, Case]]:
    """Changed keys of bundled configs."""
    for model, keys in SIZES.items():
        for key in keys:
            for what, value in BAD_SIZES.items():
                yield f"{model} {key} {what}", _config(model, {key: value})
    for what, (model, changes) in CONTRADICTIONS.items():
        yield f"{model} {what}", _config(model, changes)


def _config(model: str, changes: dict[str, object]) -> Case:
    def make(place: Path) -> list[str]:
        values = json.loads((source._BUNDLED / f"{model.replace('/', '--')}.json").read_text())
        values = {k: v for k, v in {**values, **changes}.items() if v is not MISSING}
        (place / "config.json").write_text(json.dumps(values))
        return ["plan", "--model", str(place), "--tp", "1", "--pcp", "2"]

    return make


def files() -> Iterator[tuple[str, Case]]:
    """Files that are no config.json."""
    for what, contents in FILES.items():
        yield f"config.json is {what}", _file(contents)
    yield "config.json is a directory", lambda place: _made(place, Path.mkdir)
    yield "config.json is a pipe", lambda place: _made(place, os.mkfifo)
    yield "config.json leads nowhere", _linked("nowhere")
    yield "config.json leads to itself", _linked("config.json")
    yield "config.json cannot be read", _linked("/proc/self/mem")
    yield "config.json never ends", _linked("/dev/zero")


def _file(contents: bytes) -> Case:
    def make(place: Path) -> list[str]:
        (place / "config.json").write_bytes(contents)
        return ["plan", "--model", str(place)]

    return make


def _made(place: Path, make: Callable[[Path], object]) -> list[str]:
    make(place / "config.json")
    return ["plan", "--model", str(place)]


def _linked(target: str) -> Case:
    return lambda place: _made(place, lambda path: path.symlink_to(target))


def checkpoints() -> Iterator[tuple[str, Case]]:
    """A model's directory with a broken checkpoint."""
    for what, (header, data_bytes) in HEADERS.items():
        yield f"header {what}", _checkpoint(_raw(header, data_bytes))
    for what, length in LENGTHS.items():
        yield f"header length {what}", _checkpoint(_raw(GOOD, GOOD_BYTES, length))
    for size in (0, 1, 7, 8, 9):
        yield f"file of {size} bytes", _checkpoint(_bytes(b"\x7f" * size))
    yield "git-lfs pointer", _checkpoint(_bytes(FILES["a git-lfs pointer"]))
    for what, change in INDICES.items():
        yield f"index {what}", _checkpoint(_index(change))
    yield "index is a directory", _checkpoint(lambda place: (place / INDEX).mkdir())
    yield "index leads nowhere", _checkpoint(lambda place: (place / INDEX).symlink_to("nowhere"))
    for what, text in DESCRIPTIONS.items():
        yield f"description {what}", _checkpoint(_description(text))
    yield "shard leads nowhere", _checkpoint(_shard(lambda path: path.symlink_to("nowhere")))
    yield "shard leads to itself", _checkpoint(_shard(lambda path: path.symlink_to(path.name)))
    yield "shard is a directory", _checkpoint(_shard(Path.mkdir))
    yield "shard is a pipe", _checkpoint(_shard(os.mkfifo))
    yield "shard cannot be read", _checkpoint(_shard(lambda p: p.symlink_to("/proc/self/mem")))
    yield "shard is missing", _checkpoint(_shard(lambda path: None))
    yield "shard is another shard", _checkpoint(_shard(lambda path: path.symlink_to(_OTHER)))
    yield (
        "single file leads nowhere",
        _checkpoint(lambda place: (place / "model.safetensors").symlink_to("nowhere")),
    )


def _checkpoint(make: Callable[[Path], object]) -> Case:
    def case(place: Path) -> list[str]:
        (place / "config.json").write_text(json.dumps(small_config()))
        make(place)
        return ["plan", "--model", str(place), "--dp", "2", "--ep"]

    return case


def _raw(header: bytes, data_bytes: int, length: int | None = None) -> Callable[[Path], None]:
    return lambda place: write_raw(place / "model.safetensors", header, data_bytes, length)


def _bytes(contents: bytes) -> Callable[[Path], object]:
    return lambda place: (place / "model.safetensors").write_bytes(contents)


_FILE, _OTHER = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDICES: dict[str, Callable[[str], str]] = {
    "is empty": lambda text: "",
    "is a list": lambda text: "[]",
    "has no weight_map": lambda text: '{"metadata": {}}',
    "has an empty weight_map": lambda text: '{"weight_map": {}}',
    "has two weight_maps": lambda text: text[:-1] + ', "weight_map": {"a": "b.safetensors"}}',
    "has a weight_map that is a list": lambda text: '{"weight_map": []}',
    "names a number": lambda text: '{"weight_map": {"a": 7}}',
    "names a tensor twice": lambda text: text.replace('"lm_head.weight"', '"model.norm.weight"'),
    "goes up": lambda text: text.replace(_FILE, "../" + _FILE),
    "goes to the root": lambda text: text.replace(_FILE, "/etc/passwd"),
    "names a hidden file": lambda text: text.replace(_FILE, ".safetensors"),
    "names another kind of file": lambda text: text.replace(_FILE, "model.bin"),
    "names no file": lambda text: text.replace(_FILE, ""),
    "names control characters": lambda text: text.replace(_FILE, "\\u001b[31m.safetensors"),
    "names a file that is missing": lambda text: text.replace(_FILE, "other.safetensors"),
    "names other tensors": lambda text: text[:-2] + f', "extra": "{_FILE}"}}}}',
    "names 5000 files": lambda text: json.dumps(
        {"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(5000)}}
    ),
    "is deep": lambda text: '{"metadata": ' + DEEP,
    "has a number with a leading zero": lambda text: text.replace(
        "{", '{"metadata": {"to": 03}, ', 1
    ),
    "is cut short": lambda text: text[:-20],
    "is 25 megabytes": lambda text: '{"weight_map": {' + " " * (25 << 20),
    "has lists for 24 megabytes": lambda text: '{"metadata": [' + "[]," * 8_000_000,
    "has lists for 24 megabytes under many keys": lambda text: (
        "{" + ",".join(f'"{i}": [{"[]," * 300_000}[]]' for i in range(24)) + "}"
    ),
    "has keys for 24 megabytes": lambda text: "{" + '"a":1,' * 4_000_000,
    "has texts for 24 megabytes": lambda text: '{"metadata": {' + '"a":"b",' * 3_000_000,
    "has tensors for 24 megabytes": lambda text: (
        '{"weight_map": {' + ",".join(f'"{i:060}":"a.safetensors"' for i in range(300_000))
    ),
    "has tensors of short names for 24 megabytes": lambda text: (
        '{"weight_map": {' + ",".join(f'"{i:05x}":"a.safetensors"' for i in range(1_000_000))
    ),
    "has tensors of escaped names for 24 megabytes": lambda text: (
        '{"weight_map": {' + ",".join(f'"\\u0061{i}":"a.safetensors"' for i in range(700_000))
    ),
}


DESCRIPTIONS = {
    "is empty": "",
    "is a list": "[]",
    "is 25 megabytes": "{" + " " * (25 << 20),
    "has lists for 24 megabytes": '{"metadata": [' + "[]," * 8_000_000,
    "has numbers for 24 megabytes": "{" + '"a":1,' * 4_000_000,
    "has short names for 24 megabytes": "{" + '"a":"b",' * 3_000_000,
    "has weights for 24 megabytes": "{"
    + ",".join(f'"{i:x}.weight":"FLOAT"' for i in range(1_000_000)),
}


def _description(text: str) -> Callable[[Path], object]:
    return lambda place: (place / DESCRIPTION).write_text(text)


def _index(change: Callable[[str], str]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        write(place, deepseek(small_config()), shards=2)
        (place / INDEX).write_text(change((place / INDEX).read_text()))

    return make


def _shard(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def case(place: Path) -> None:
        write(place, deepseek(small_config()), shards=2)
        (place / _FILE).unlink()
        make(place / _FILE)

    return case


def arguments() -> Iterator[tuple[str, Case]]:
    """Flags, names and what `check` is given."""
    for flags in FLAGS:
        words = ["plan", "--model", "DeepSeek-V3", *_words(flags)]
        yield f"plan {flags}", lambda place, words=words: words
    for text in CHECKS:
        words = ["check", text, "--model", "DeepSeek-V3", "--dp", "8"]
        yield f"check {text}", lambda place, words=words: words
    for name in NAMES:
        yield f"--model {name}", lambda place, name=name: ["plan", "--model", name]
    yield "nothing to check", lambda place: ["check", "--model", "DeepSeek-V3"]
    yield "no model", lambda place: ["plan"]
    yield "no such command", lambda place: ["plane"]
    yield "a command of control characters", lambda place: ["\x1b[31m"]
    yield "exact without files", lambda place: [*_config(V3, {})(place), "--exact"]
    yield "exact offline", lambda place: ["plan", "--model", "DeepSeek-V3", "--exact"]
    yield "map of nothing", lambda place: ["map", "--model", ""]


def _words(flags: str) -> list[str]:
    return [word.removeprefix("$") for word in shlex.split(flags)]


CASES: dict[str, Case] = {
    name[:120].encode("unicode_escape").decode(): case
    for group in (configs, files, checkpoints, arguments)
    for name, case in group()
}
