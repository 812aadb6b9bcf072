"""Every bad input ends in one message on stderr, the right exit code and no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from console import complaint, layershard
from vllm_layershard.models.sources import source

V3 = json.loads((source._BUNDLED / "deepseek-ai--DeepSeek-V3.json").read_text())


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))


CONFIGS = {
    "negative": ({"hidden_size": -3}, "hidden_size: -3 is not a whole number"),
    "null": ({"kv_lora_rank": None}, "kv_lora_rank: is null"),
    "string": ({"num_hidden_layers": "61"}, 'num_hidden_layers: "61" is not a whole number'),
    "boolean": ({"num_attention_heads": True}, "num_attention_heads: true is not a whole number"),
    "float": ({"v_head_dim": 128.5}, "v_head_dim: 128.5 is not a whole number"),
    "huge": ({"vocab_size": 10**30}, "vocab_size: 10000"),
    "too many layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers: 1000000 is not"),
    "bitsandbytes": (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        '"bitsandbytes" is not supported: vLLM 0.32 has no class for it',
    ),
    "quantisation": ({"quantization_config": [1]}, "quantization_config: [1] is not an object"),
    "dtype": ({"torch_dtype": "int4"}, "torch_dtype: 'int4' is not one of"),
    "activation": ({"hidden_act": "gelu"}, 'hidden_act: "gelu"'),
    "architecture": ({"architectures": ["Foo"]}, "architecture 'Foo'"),
    "no architecture": ({"architectures": None}, "architectures: is missing"),
    "model_type": ({"model_type": "llama"}, "model_type 'llama'"),
    "more chosen than there are": ({"num_experts_per_tok": 999}, "num_experts_per_tok: 999"),
}


@pytest.mark.parametrize("case", CONFIGS, ids=CONFIGS)
def test_a_bad_config_is_told_with_its_file_and_key(case: str, tmp_path: Path) -> None:
    changes, expected = CONFIGS[case]
    path = tmp_path / "any-name.json"
    path.write_text(json.dumps(V3 | changes))
    code, message = complaint("plan", "--model", str(path), "--dp", "2")
    assert code == 3
    assert expected in message
    assert message.count("\n") == 0
    assert str(path) in message


FILES = {
    "broken": (b'{"a": ', "is not valid JSON"),
    "binary": (b"\xff\xfe\x00", "is not UTF-8 text"),
    "empty": (b"", "is not valid JSON"),
    "a list": (b"[1]", "where a JSON object was expected"),
    "deep": (b"[" * 100000, "is not valid JSON: it is nested too deeply"),
    "a long number": (b'{"a": ' + b"9" * 10000 + b"}", "is not valid JSON"),
}


@pytest.mark.parametrize("case", FILES, ids=FILES)
def test_a_broken_file_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    contents, expected = FILES[case]
    (tmp_path / "config.json").write_bytes(contents)
    code, message = complaint("plan", "--model", str(tmp_path), "--dp", "2")
    assert code == 3
    assert expected in message
    assert message.count("\n") == 0


FLAGS = {
    "no such path": (3, "no such file or directory", "--model /no/such/path --dp 2"),
    "no such name": (3, "is neither a path, nor a bundled model", "--model nope --dp 2"),
    "empty name": (3, "--model is empty", "--model  --dp 2"),
    "offline": (3, "HF_HUB_OFFLINE forbids", "--model some/model --dp 2"),
    "hardware": (3, "known are A100, H20", "--model DeepSeek-V3 --hardware Foo"),
    "one rank": (2, "a group of one rank", "--model DeepSeek-V3 --dp 1"),
    "tensor parallel only": (2, "a group of one rank", "--model DeepSeek-V3 --tp 8"),
    "zero": (2, "dp = 0", "--model DeepSeek-V3 --dp 0"),
    "too many ranks": (2, "100,000 ranks", "--model DeepSeek-V3 --dp 100000"),
    "indivisible": (2, "tp = 3: does not divide", "--model DeepSeek-V3 --tp 3 --dp 2"),
    "blocks": (2, "fp8 block", "--model DeepSeek-V3 --tp 32 --dp 2 --ep"),
    "experts": (2, "512 ranks share 256", "--model DeepSeek-V3 --dp 512 --ep"),
    "stages": (2, "pp = 62", "--model DeepSeek-V3 --dp 2 --pp 62"),
    "unmatched": (2, "o_proj (61 x 117,440,512 bytes)", "--model DeepSeek-V3 --dp 2 --layers foo"),
    "kv_b_proj": (2, "may not be sharded", "--model DeepSeek-V3 --dp 2 --layers kv_b_proj"),
    "gate": (2, "may not be sharded", "--model DeepSeek-V3 --dp 2 --layers mlp.gate"),
    "lm_head": (2, "may not be sharded", "--model DeepSeek-V3 --dp 2 --layers lm_head"),
    "experts by name": (2, "expert parallelism", "--model DeepSeek-V3 --dp 2 --layers experts"),
    "duplicate": (2, "more than once", "--model DeepSeek-V3 --dp 2 --layers o_proj,o_proj"),
    "empty layer": (2, "is not a dotted name", "--model DeepSeek-V3 --dp 2 --layers ,"),
    "negative step": (2, "prefetch_step = -1", "--model DeepSeek-V3 --prefetch-step -1"),
    "step beyond the series": (
        2,
        "needs at least 4",
        "--model DeepSeek-V3 --dp 2 --layers mlp.down_proj --prefetch-step 3",
    ),
    "stride": (2, "layer_stride = 0", "--model DeepSeek-V3 --layer-stride 0"),
    "stride without layers": (
        2,
        "leaves no layer",
        "--model DeepSeek-V3 --pp 2 --dp 2 --layers mlp.shared_experts.down_proj "
        "--layer-stride 100",
    ),
    "stride leaves too few": (
        2,
        "has 1 layer left with layer_stride 100; prefetch_step 1 needs at least 2: lower "
        "layer_stride",
        "--model DeepSeek-V3 --dp 2 --layer-stride 100",
    ),
    "short stage": (
        2,
        "pipeline stage 0 of 61: series 'o_proj' has 1 layer",
        "--model DeepSeek-V3 --dp 2 --pp 61",
    ),
    "empty cache dtype": (2, "--kv-cache-dtype ''", "--model DeepSeek-V3 --kv-cache-dtype "),
    "placement": (2, "placement = 'foo'", "--model DeepSeek-V3 --placement foo"),
    "cache dtype": (2, "--kv-cache-dtype 'int2'", "--model DeepSeek-V3 --kv-cache-dtype int2"),
    "tokens": (2, "'1.5K'", "--model DeepSeek-V3 --tokens 1.5K"),
    "no tokens": (2, "'0'", "--model DeepSeek-V3 --tokens 0"),
    "not a number": (2, "--dp", "--model DeepSeek-V3 --dp two"),
    "unknown flag": (2, "--foo", "--model DeepSeek-V3 --foo"),
    "no model": (2, "--model", "--dp 2"),
    "experts of a dense model": (2, "--ep: Qwen/Qwen3-32B", "--model Qwen3-32B --pcp 2 --ep"),
    "a phase nobody knows": (2, "'foo' is not one of", "--model Qwen3-32B --pcp 2 --hide-in foo"),
    "a checked phase": (2, "'foo'", "--model DeepSeek-V3 --hide-in foo --check"),
    "one file for two": (2, "both name 'x'", "--model DeepSeek-V3 --html x --trace x"),
    "one file, two names": (2, "both name 'x'", "--model DeepSeek-V3 --html x --trace ./x"),
    "one file, a way around": (2, "both name 'x'", "--model DeepSeek-V3 --html x --trace a/../x"),
    "auto with nothing to move": (
        2,
        "--placement replicated moves none",
        "--model DeepSeek-V3 --layers auto --placement replicated",
    ),
    "broadcasts between replicas of a dense model, assumed": (
        2,
        "needs lockstep; use transport 'pull' or 'auto'",
        "--model Qwen3-32B --transport broadcast",
    ),
    "broadcasts of stripes": (
        2,
        "use transport 'pull' or 'auto'",
        "--model DeepSeek-V3 --placement striped --transport broadcast",
    ),
    "transport": (2, "transport = 'foo'", "--model DeepSeek-V3 --transport foo"),
    "slices": (2, "slice_bytes = -1", "--model DeepSeek-V3 --slice-bytes -1"),
    "pulls between nodes": (
        2,
        "lie on 2 nodes of 8 H200",
        "--model DeepSeek-V3 --dp 16 --ep --transport pull",
    ),
    "auto between nodes": (
        2,
        "lie on 2 nodes of 8 H200",
        "--model DeepSeek-V3 --dp 16 --ep --placement striped --layers auto",
    ),
    "a trace without a name": (2, "--trace is empty", "--model DeepSeek-V3 --trace "),
}


@pytest.mark.parametrize("case", FLAGS, ids=FLAGS)
def test_bad_flags_are_refused_with_the_right_code(case: str) -> None:
    expected_code, expected, flags = FLAGS[case]
    code, message = complaint("plan", *flags.split(" "))
    assert code == expected_code, message
    assert expected in message


CHECKS = {
    "not JSON": ("[", "is not valid JSON"),
    "not a list": ('{"layer_sharding": 3}', "must be a list of names or an object"),
    "unknown key": ('{"layer_sharding": {"layers": ["o_proj"], "x": 1}}', "x: unknown key"),
    "misspelt key": ('{"layer_shardng": ["o_proj"]}', "has no key 'layer_sharding'"),
    "empty list": ('{"layer_sharding": []}', "layers"),
    "no such file": ("@/no/such/file", "give the path of a file after the @"),
    "null": ('{"layer_sharding": null}', "layer_sharding = null: must be"),
    "null within": ('{"layer_sharding": [null, true]}', "layers.0 = null"),
    "a null placement": (
        '{"layer_sharding": {"layers": ["o_proj"], "placement": null}}',
        "placement = null",
    ),
    "empty report_dir": (
        '{"layer_sharding": {"layers": ["o_proj"], "report_dir": " "}}',
        "report_dir: ' ' names no directory; give the path of a directory",
    ),
    "unmatched": ('{"layer_sharding": ["foo"]}', "'foo' matches no linear"),
}


@pytest.mark.parametrize("case", CHECKS, ids=CHECKS)
def test_bad_additional_configs(case: str) -> None:
    text, expected = CHECKS[case]
    code, message = complaint("check", text, "--model", "DeepSeek-V3", "--dp", "8")
    assert code == 2
    assert expected in message
    assert message.count("\n") == 0


def test_dense_replicas_pull_and_are_refused_a_broadcast() -> None:
    flags = ["plan", "--model", "Qwen3-32B", "--dp", "2"]
    assert layershard(*flags).code == 0
    code, message = complaint(*flags, "--transport", "broadcast")
    assert code == 2
    assert "engines of their own" in message
    assert message.endswith("use transport 'pull' or 'auto'")
    value = '{"layer_sharding": {"layers": ["o_proj"], "transport": "broadcast"}}'
    assert complaint("check", value, "--model", "Qwen3-32B", "--dp", "2") == (2, message)


def test_nobody_to_share_with_is_refused_for_the_control_too() -> None:
    """As the server does: `check` and `vllm serve` agree."""
    value = '{"layer_sharding": {"layers": ["o_proj"], "placement": "replicated"}}'
    code, message = complaint("check", value, "--model", "DeepSeek-V3", "--dp", "1")
    assert code == 2
    assert "a group of one rank has nobody to share with" in message


def test_a_hub_that_cannot_be_reached_is_told_with_the_alternative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    code, message = complaint("plan", "--model", "some/model", "--dp", "2")
    assert code == 3
    assert "cannot be reached" in message
    assert "config.json instead" in message


def test_a_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-m", "layershard_cli"]
    mapped = ["map", "--model", "DeepSeek-V3"]
    for extra in (mapped, [*mapped, "--json"], [], ["--help"], ["plan", "--help"], ["--version"]):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as closed:
            result = subprocess.run(
                command + extra, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60
            )
        assert (result.returncode, "Traceback" in result.stderr) == (0, False)


@pytest.mark.parametrize("extra", [[], ["--json"], ["--timeline", "--ledger"]])
@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_closed_pipe_changes_no_verdict(extra: list[str], both: bool) -> None:
    command = [sys.executable, "-m", "layershard_cli", "plan", "--model", "DeepSeek-V3", "--check"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        ended = subprocess.run(
            [*command, *extra],
            stdout=closed,
            stderr=closed if both else subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert both or ended.stderr == "check failed: prefill does not hide\n"


@pytest.mark.parametrize(
    ("flags", "code"), [("--dp two", 2), ("--dp 0", 2), ("--hardware nothing", 3)]
)
def test_a_message_that_nobody_reads_changes_no_exit_code(flags: str, code: int) -> None:
    command = [sys.executable, "-m", "layershard_cli", "plan", "--model", "DeepSeek-V3"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        ended = subprocess.run(
            [*command, *flags.split()], stdout=closed, stderr=closed, timeout=60, check=False
        )
    assert ended.returncode == code


def test_a_full_disk_is_one_message() -> None:
    script = Path(sys.executable).with_name("layershard")
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(
            [str(script), "plan", "--model", "DeepSeek-V3", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert finished.returncode == 2
    assert finished.stderr == "layershard: stdout cannot be written: No space left on device\n"
