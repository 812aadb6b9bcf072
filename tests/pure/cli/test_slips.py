"""Slips of the pen: what a message suggests, and what it never repeats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints import small_config
from console import complaint, layershard, said
from vllm_layershard.errors import ConfigError, ModelError, without_secrets
from vllm_layershard.models import bundled_names

PASSWORD = "CanaryPassword"
USERS = [
    f"https://bob:{PASSWORD}@host/model",
    f"https:/bob:{PASSWORD}@host/model",
    f"HTTPS://bob:{PASSWORD}@host:80/model",
    f"https://{PASSWORD}@host/model",
    f"https://bob:a@b/{PASSWORD}@host/model",
    f"ssh://bob:{PASSWORD}@host/model",
    f"s3://bob:{PASSWORD}@host/model.json",
]
SAYS = [
    ["plan", "--model", "{}"],
    ["map", "--model", "{}"],
    ["check", '["o_proj"]', "--model", "{}"],
    ["check", "@{}", "--model", "DeepSeek-V3"],
    ["check", "{}", "--model", "DeepSeek-V3"],
    ["compare", "--model", "{}"],
    ["hardware", "{}"],
    ["plan", "--model", "DeepSeek-V3", "--hardware", "{}"],
    ["plan", "--model", "DeepSeek-V3", "--layers", "{}"],
    ["plan", "--model", "DeepSeek-V3", "--placement", "{}"],
    ["plan", "--model", "DeepSeek-V3", "--kv-cache-dtype", "{}"],
    ["plan", "--model", "DeepSeek-V3", "--tokens", "{}"],
    ["plan", "--model", "DeepSeek-V3", "--tp", "{}"],
    ["plan", "--model", "DeepSeek-V3", "--html", "{}"],
    ["{}"],
]


@pytest.mark.parametrize("command", SAYS, ids=" ".join)
def test_no_url_is_repeated_with_its_password(command: list[str]) -> None:
    for url in USERS:
        ended = layershard(*(word.format(url) if "{}" in word else word for word in command))
        assert ended.code in (2, 3), url
        assert PASSWORD not in ended.stdout + ended.stderr, url


NAMED = [
    f"org/name?token={PASSWORD}",
    f"org/name?revision=main&token={PASSWORD}",
    f"org/name#token={PASSWORD}",
    f"org/name?{PASSWORD}=1",
    f"org/of/names?token={PASSWORD}",
    f"./name.json?token={PASSWORD}",
    f"./name/token={PASSWORD}",
    f"./name/API_KEY={PASSWORD}/config.json",
    f"https:/host/model?X-Signature={PASSWORD}",
    f"./name.json?token=a {PASSWORD}",
    f"./name?revision=a b&token=c d,{PASSWORD}/config.json",
    f"org/of/names?note=a:b {PASSWORD} {PASSWORD}",
]
IN_A_MODEL = [
    f"org/name?{PASSWORD}",
    f"org/name?token={PASSWORD} {PASSWORD}",
    f"org/name@{PASSWORD}",
    f"bob:{PASSWORD}@org/name",
    f"token={PASSWORD}",
    f"org/name%3Ftoken%3D{PASSWORD}",
]


READS = [command for command in SAYS if "--html" not in command]
"""Those to which a name is not that of a file to be written."""


@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_no_query_of_a_name_is_repeated(command: list[str]) -> None:
    """Its keys and its values: both may hold a secret."""
    of_models = "--model" in command and command[command.index("--model") + 1] == "{}"
    for name in [*NAMED, *IN_A_MODEL] if of_models else NAMED:
        ended = layershard(*(word.format(name) if "{}" in word else word for word in command))
        assert ended.code in (2, 3), name
        assert PASSWORD not in ended.stdout + ended.stderr, name


@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_no_token_of_the_hub_is_repeated(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    token = "hf_CanaryTokenOf34CharactersInAll"
    for name in (token, f"org/{token}", f"./{token}/config.json"):
        ended = layershard(*(word.format(name) if "{}" in word else word for word in command))
        assert ended.code in (2, 3), name
        assert token not in ended.stdout + ended.stderr, name


@pytest.mark.parametrize("name", NAMED)
def test_no_error_of_the_library_holds_a_query(name: str) -> None:
    assert PASSWORD not in str(ModelError(f"{name}: no such file; give {name!r}"))


@pytest.mark.parametrize("flag", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("command", ["plan", "map", "check", "compare"])
def test_no_query_of_a_path_that_is_there_is_repeated(
    command: str, flag: list[str], tmp_path: Path
) -> None:
    place = tmp_path / f"model?note=a b&token=c {PASSWORD}"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(small_config()))
    words = ['["o_proj"]'] if command == "check" else []
    layout = ["--layout", "tp2"] if command == "compare" else ["--pcp", "2"]
    ended = layershard(command, *words, "--model", str(place), *layout, *flag)
    assert (ended.code, PASSWORD in ended.stdout + ended.stderr) == (0, False)
    if flag:
        assert json.loads(ended.stdout)["model"]["name"] == f"{tmp_path}/model?..."


@pytest.mark.parametrize("url", USERS)
def test_no_error_of_the_library_holds_a_password(url: str) -> None:
    assert PASSWORD not in str(ModelError(f"{url}: no such file; give {url!r}"))


@pytest.mark.parametrize(
    "text",
    [
        "local:/home/a@b/config.json: no such file",
        "hub:organisation/model@main",
        "https://huggingface.co/a/b has organisation/model@main",
        "@/home/x.json: is a pipe",
        "hf_quant_config.json beside it; did you mean quant_algo?",
        "max_num_batched_tokens=8192 of hf_config: --max-model-len=4096",
        "hidden_size = 5,120; is it? (x=1)",
        "wrong; give --tp=2 and --dp=4",
        "hf_transfer, hf_overrides and hf_tokenizer_path are no tokens",
        "",
    ],
)
def test_what_names_no_user_is_left_as_it_is(text: str) -> None:
    assert without_secrets(text) == text
    assert str(ConfigError(text)) == text


def test_a_url_is_no_model_and_says_what_is() -> None:
    code, message = complaint("plan", "--model", "https://huggingface.co/deepseek-ai/DeepSeek-V3")
    assert code == 3
    assert "--model is a URL, and none is read; give a model directory" in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DeepSek-V3", "deepseek-ai/DeepSeek-V3"),
        ("DeepSeekV3", "deepseek-ai/DeepSeek-V3"),
        ("deepseek-ai/DeepSek-V3.2", "deepseek-ai/DeepSeek-V3.2"),
        ("Mixtral-8x22B-v01", "mistralai/Mixtral-8x22B-v0.1"),
        ("GLM-52-FP8", "zai-org/GLM-5.2-FP8"),
        ("gpt-os-120b", "openai/gpt-oss-120b"),
        ("Kimi-K2-Instuct", "moonshotai/Kimi-K2-Instruct"),
    ],
)
def test_a_misspelt_model_is_told_the_one_that_is_near(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert meant in bundled_names()
    code, message = complaint("plan", "--model", name)
    assert (code, message.rpartition("; ")[2]) == (3, f"did you mean {meant}?")


@pytest.mark.parametrize("name", ["DeepSeek-V9", "deepseek-ai/DeepSeek-V5", "Phi-3", "x"])
def test_a_model_with_another_number_is_no_slip(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, message = complaint("plan", "--model", name)
    assert code == 3
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("dtype", "meant"),
    [("FP8", "fp8"), ("BFloat16", "bfloat16"), ("bf16", "bfloat16"), ("fp16", "float16"),
     ("AUTO", "auto"), ("float8_e4m3fn", "fp8_e4m3")],
)  # fmt: skip
def test_a_cache_dtype_is_spelled_as_vllm_does(dtype: str, meant: str) -> None:
    flags = ["--model", "DeepSeek-V3", "--kv-cache-dtype"]
    code, message = complaint("plan", *flags, dtype)
    assert code == 2
    assert message.endswith(f"; did you mean {meant}?")
    said("plan", *flags, meant)
    assert "did you mean" not in complaint("plan", *flags, "int4")[1]


def test_the_help_says_the_bounds_of_a_number() -> None:
    shown = " ".join(said("plan", "--help", COLUMNS="200").split())
    assert "1<=x<=64" in shown
    assert "0 to 64" in shown
    assert layershard("plan", "--model", "DeepSeek-V3", "--mtp", "65").code == 2


@pytest.mark.parametrize("where", ["config", "hardware", "additional", "index"])
def test_a_number_of_many_digits_is_no_riddle(where: str, tmp_path: Path) -> None:
    """Python's own message tells a programmer which function to call."""
    number = "1" * 100_000
    path = tmp_path / "config.json"
    path.write_text(f'{{"hidden_size": {number}}}')
    model = ["--model", "DeepSeek-V3"]
    commands = {
        "config": ["plan", "--model", str(path)],
        "hardware": ["plan", *model, "--hardware", str(path)],
        "additional": ["check", f"@{path}", *model],
        "index": ["plan", "--model", str(tmp_path)],
    }
    code, message = complaint(*commands[where])
    assert code in (2, 3)
    assert "is not valid JSON: it holds a number of more digits than are read" in message
    assert "set_int_max_str_digits" not in message
    assert len(message) < 400


def test_a_broken_file_still_says_where() -> None:
    code, message = complaint("check", '{"layer_sharding": }', "--model", "DeepSeek-V3")
    assert code == 2
    assert "is not valid JSON: Expecting value: line 1 column 20" in message


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("./m?token=a b: no such file; give one", "./m?...: no such file; give one"),
        ("'./m?token=a b' is no model", "'./m?...' is no model"),
        ("./m?a=b c, 8 layers (local:./m?a=b c/config.json)", "./m?..., 8 layers (local:./m?...)"),
        ("./m?a=b c; give another", "./m?...; give another"),
        ("./m?a=b c\nnext=1 line", "./m?...\nnext=1 line"),
    ],
)
def test_a_message_goes_on_behind_a_query(text: str, left: str) -> None:
    assert without_secrets(text) == left


LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz012345"


@pytest.mark.parametrize(
    "token",
    [
        f"hf_{LETTERS}",
        f"hf_{LETTERS.lower()}",
        "hf_CanaryToken",
        "hf_abcdefghijklmnopqrst",
        f"hf_oauth_{LETTERS}",
        f"api_org_{LETTERS}",
    ],
)
@pytest.mark.parametrize("where", ["{0}", "organisation/{0}", "./{0}/config.json", "org_{0}"])
def test_a_token_given_for_a_model_or_a_device_is_not_repeated(
    token: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = where.format(token)
    for command in (["--model", given], ["--model", "DeepSeek-V3", "--hardware", given]):
        code, message = complaint("plan", *command)
        assert code in (2, 3)
        assert token not in message
        assert token.rpartition("_")[2] not in message


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_the_token_of_the_environment_is_repeated_in_no_form(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "of-another-kind"
    monkeypatch.setenv(variable, f" {token}\n")
    code, message = complaint("plan", "--model", token)
    assert code in (2, 3)
    assert token not in message
    assert f"{variable}'s value" in message
