"""No token and no password is ever printed, whatever fails and however they are written."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import deepseek, small_config, write
from console import Ended, layershard
from hub_server import NAME, Handler, serving
from vllm_layershard.models.sources import http_get

TOKEN, PASSWORD = "hf_CanaryToken", "CanaryPassword"
MANNERS = (
    "",
    "circles",
    "fails aloud",
    "grows",
    "hangs",
    "hangs up",
    "ignores ranges",
    "leads to a file",
    "leads to ftp",
    "leads to the token",
    "redirects",
    "refuses",
    "hangs up at once",
    "sends another part",
    "sends less",
    "sends more",
    "speaks no HTTP",
    "states another size",
    "states no part",
    "states the token",
    "trickles",
)
"""All that the server knows."""

COMMANDS = {
    "plan": ["plan", "--model", NAME, "--pcp", "2", "--exact"],
    "plan of no such model": ["plan", "--model", "no/such", "--pcp", "2"],
    "map": ["map", "--model", NAME, "--pcp", "2", "--exact", "--json"],
    "check": ["check", '["o_proj"]', "--model", NAME, "--pcp", "2", "--exact"],
    "compare": ["compare", "--model", NAME, "--layout", "tp2"],
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Handler]]:
    class Here(Handler):
        root, manners, elsewhere, seen = tmp_path / "served", "", "http://127.0.0.1:9", []
        released = threading.Event()

    Here.root.mkdir()
    (Here.root / "config.json").write_text(json.dumps(small_config()))
    write(Here.root, deepseek(small_config()), shards=2)
    monkeypatch.setattr(http_get, "_REQUEST_SECONDS", 2.0)
    monkeypatch.setattr(http_get, "_SOCKET_SECONDS", 1.0)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for address in serving(Here):
        Here.address = address
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield Here
        Here.released.set()


def require_no_secret(ended: Ended) -> None:
    for text in (ended.stdout, ended.stderr):
        assert TOKEN not in text
        assert PASSWORD not in text
        assert "Traceback" not in text
    assert ended.code in (0, 2, 3)
    if ended.code:
        assert (ended.stdout, ended.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("manners", MANNERS)
def test_none_is_printed_whatever_the_hub_does(
    hub: type[Handler], manners: str, command: str
) -> None:
    hub.manners = manners
    require_no_secret(layershard(*COMMANDS[command]))
    assert {token for _, _, token in hub.seen} == {f"Bearer {TOKEN}"}


def test_the_manners_are_all_that_the_server_knows() -> None:
    source = Path(__file__).parents[2].joinpath("support/hub_server.py").read_text()
    assert {part.partition('"')[0] for part in source.split('self.manners == "')[1:]} == {
        *MANNERS
    } - {""}


TOKENS = {
    "a line break behind it": (f"{TOKEN}\n", True),
    "white space around it": (f" \t{TOKEN} \r\n", True),
    "a line break within": (f"{TOKEN}\nX-Header: x", False),
    "a space within": (f"{TOKEN} x", False),
    "another alphabet": (f"{TOKEN}\u00e9", False),
    "an emoji": (f"{TOKEN}\U0001f600", False),
    "an escape": (f"\x1b[31m{TOKEN}", False),
    "a surrogate": (f"{TOKEN}\udc80", False),
    "too long": (TOKEN * 1000, False),
}


@pytest.mark.parametrize("case", TOKENS)
def test_a_token_is_stripped_or_refused_by_its_name(hub: type[Handler], case: str) -> None:
    token, good = TOKENS[case]
    ended = layershard(*COMMANDS["plan"], HF_TOKEN=token)
    require_no_secret(ended)
    if good:
        assert (ended.code, {seen for _, _, seen in hub.seen}) == (0, {f"Bearer {TOKEN}"})
    else:
        assert (ended.code, hub.seen) == (3, [])
        assert "HF_TOKEN: holds characters other than visible ASCII" in ended.stderr


def test_a_token_of_nothing_is_none(hub: type[Handler]) -> None:
    ended = layershard(*COMMANDS["plan"], HF_TOKEN=" \n")
    assert (ended.code, {seen for _, _, seen in hub.seen}) == (0, {None})
    assert "unencrypted" not in ended.stdout


ENDPOINTS = {
    "user and password": ("http://user:{0}@127.0.0.1:9/x", "for http://127.0.0.1:9, which are not"),
    "a user": ("http://{0}@127.0.0.1:9", "for http://127.0.0.1:9, which are not sent"),
    "an @ in the password": ("http://user:a@{0}@[::1]", "for http://[::1], which are not sent"),
    "a slash in the password": ("http://user:a/{0}@127.0.0.1", "is no address"),
    "no scheme": ("user:{0}@127.0.0.1", "must start with https:// or http://"),
    "another scheme": ("ftp://user:{0}@127.0.0.1", "must start with https:// or http://"),
    "a broken host": ("http://[{0}", "is no address"),
    "a broken port": ("http://127.0.0.1:{0}", "is no address"),
    "a query": ("http://127.0.0.1:9/?token={0}", "has more than an address behind http://127"),
    "a fragment": ("http://127.0.0.1:9#{0}", "has more than an address behind http://127.0"),
    "an escape": ("http://127.0.0.1:9/\x1b[31m{0}", "is no address"),
    "white space": ("http://127.0.0.1:9/a {0}", "is no address"),
    "a secret path": ("http://127.0.0.1:9/{0}", "the Hub at http://127.0.0.1:9 cannot be reached"),
    "no such host": ("http://no-such-host.invalid/{0}", "the Hub at http://no-such-host.invalid"),
    "nobody listens": ("http://127.0.0.1:9", "(Connection refused)"),
}


@pytest.mark.parametrize("case", ENDPOINTS)
def test_of_an_endpoint_scheme_and_host_are_printed(hub: type[Handler], case: str) -> None:
    endpoint, message = ENDPOINTS[case]
    for command in COMMANDS.values():
        ended = layershard(*command, HF_ENDPOINT=endpoint.format(PASSWORD))
        require_no_secret(ended)
        assert (ended.code, message in ended.stderr) == (3, True), ended.stderr


def test_a_server_that_is_not_encrypted(hub: type[Handler]) -> None:
    ended = layershard(*COMMANDS["plan"], HF_ENDPOINT=hub.address.replace("http:", "https:"))
    require_no_secret(ended)
    assert "(no encrypted connection to it)" in ended.stderr


@pytest.mark.parametrize(
    "proxy",
    ["http://user:{0}@127.0.0.1:9", "user:{0}@127.0.0.1:9", "http://{0}", "http:///{0}", "//{0}"],
)
def test_of_a_proxy_nothing_is_printed(
    hub: type[Handler], monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    ended = layershard(
        *COMMANDS["plan"],
        HF_ENDPOINT="http://no-such-host.invalid",
        http_proxy=proxy.format(PASSWORD),
    )
    require_no_secret(ended)
    assert "cannot be reached" in ended.stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if "such" not in name])
def test_that_a_token_goes_unencrypted_is_said(hub: type[Handler], command: str) -> None:
    said = f"HF_TOKEN goes to {hub.address} unencrypted"
    ended = layershard(*COMMANDS[command])
    assert (ended.stdout + ended.stderr).count(said) == 1
    assert said not in layershard(*COMMANDS[command], HF_TOKEN="").stdout


def test_it_is_said_of_headers_of_a_bundled_model_and_where_it_fails(hub: type[Handler]) -> None:
    said = f"HF_TOKEN goes to {hub.address} unencrypted"
    assert said in layershard("plan", "--model", "no/such").stderr
    assert said in layershard("plan", "--model", "DeepSeek-V3", "--exact").stderr
    assert said not in layershard("plan", "--model", "DeepSeek-V3").stdout
