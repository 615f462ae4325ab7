from __future__ import annotations

import asyncio
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from teragpt.config import ConfigError
from teragpt.inference.chat import chat
from teragpt.inference.generate import Sampling
from teragpt.inference.sample import Piece, Sampler
from teragpt.inference.serve import Served, make_app, serve

TEMPLATE = "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}assistant:"
TURN = {"role": "user", "content": "x"}
GREEDY: dict[str, Any] = {"model": "small", "temperature": 0}


@pytest.fixture(scope="module")
def sampler(trained: Path) -> Sampler:
    return Sampler(trained)


@pytest.fixture(scope="module")
def client(sampler: Sampler) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a server that runs."""
    server = uvicorn.Server(uvicorn.Config(make_app(Served(sampler, "small", TEMPLATE, "key")), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=url, api_key="key", max_retries=0) as made:
            yield made
        server.should_exit = True
        thread.join()


def test_a_completion_is_what_the_sampler_writes(client: openai.OpenAI, sampler: Sampler) -> None:
    (ours,) = sampler.complete(["def main("], Sampling(tokens=8, temperature=0))
    made = client.completions.create(prompt="def main(", max_tokens=8, logprobs=2, **GREEDY)
    assert made.choices[0].text == ours.text
    assert made.choices[0].finish_reason == ours.finish
    assert made.usage is not None
    assert made.usage.completion_tokens == len(ours.drawn)
    told = made.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert "".join(told.tokens) == ours.text
    assert all(len(one) == 2 for one in told.top_logprobs or [])


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": ["def main(", "import "], "max_tokens": 8, "seed": 3, "model": "small"}
    whole = client.completions.create(**asked)
    texts = ["", ""]
    usage = None
    for event in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage


def test_a_stop_string_ends_a_text_and_n_gives_several(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="def main(", max_tokens=8, **GREEDY).choices[0].text
    made = client.completions.create(prompt="def main(", max_tokens=8, stop=whole[2:4], n=2, **GREEDY)
    assert [choice.text for choice in made.choices] == [whole[: whole.index(whole[2:4])]] * 2
    assert made.choices[0].finish_reason == "stop"


def test_a_conversation_is_answered_whole_and_streamed(client: openai.OpenAI, sampler: Sampler) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    made = client.chat.completions.create(messages=messages, max_completion_tokens=5, logprobs=True, **GREEDY)
    prompt = sampler.tokenizer.encode_chat([{"role": "user", "content": "x"}], TEMPLATE)
    (ours,) = sampler.complete([prompt], Sampling(tokens=5, temperature=0))
    assert made.choices[0].message.content == ours.text
    assert made.choices[0].logprobs is not None
    assert len(made.choices[0].logprobs.content or []) == 5
    events = list(client.chat.completions.create(messages=messages, max_tokens=5, stream=True, **GREEDY))
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events) == ours.text
    assert events[-1].choices[0].finish_reason == "length"


def test_what_is_null_is_as_if_it_were_not_there(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "small", "prompt": "def main(", "seed": 1}
    nulls = dict.fromkeys(["max_tokens", "temperature", "top_p", "n", "stop", "logprobs", "logit_bias"])
    made = client.completions.create(**asked, extra_body=nulls)
    assert made.choices[0].text == client.completions.create(**asked).choices[0].text
    assert made.usage is not None
    assert made.usage.completion_tokens <= 16


def test_what_is_said_as_it_is_anyway_changes_nothing(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": "def main(", "max_tokens": 4, **GREEDY}
    plain = client.completions.create(**asked)
    said = client.completions.create(**asked, best_of=1, echo=False, presence_penalty=0.0, suffix=None)
    assert said.choices[0].text == plain.choices[0].text
    talk = client.chat.completions.create(messages=[TURN], max_tokens=4, response_format={"type": "text"}, **GREEDY)
    assert talk.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match=r"response_format: got .*json_object.*; allowed: nothing"):
        client.chat.completions.create(messages=[TURN], response_format={"type": "json_object"}, **GREEDY)


@pytest.mark.parametrize("streamed", [False, True])
def test_nothing_more_is_written_for_a_client_that_has_gone(
    client: openai.OpenAI, sampler: Sampler, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    ended, drawn = threading.Event(), [0]

    def slow(*asked: Any) -> Iterator[Piece]:
        try:
            for piece in Sampler.stream(sampler, *asked):
                drawn[0] += 1
                time.sleep(0.1)
                yield piece
        finally:
            ended.set()

    monkeypatch.setattr(sampler, "stream", slow)
    asked = {"model": "small", "prompt": "x", "max_tokens": 25, "n": 8, "stream": streamed}
    with (
        httpx.Client(base_url=str(client.base_url), headers={"authorization": "Bearer key"}) as leaving,
        leaving.stream("POST", "completions", json=asked) as reply,
    ):
        assert reply.status_code == 200
    assert ended.wait(60)
    assert drawn[0] < 25 * 8


def test_a_fault_of_the_server_has_the_shape_of_openais(
    client: openai.OpenAI, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "stream", lambda *_: 1 / 0)
    with pytest.raises(openai.InternalServerError, match="its log says at what") as failed:
        client.completions.create(model="small", prompt="x")
    assert failed.value.type == "server_error"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "teragpt"


def test_what_cannot_be_answered_is_refused_by_name(client: openai.OpenAI) -> None:
    def refused(kind: type[openai.APIStatusError], message: str, **asked: Any) -> None:
        with pytest.raises(kind, match=message):
            client.completions.create(**{"model": "small", "prompt": "x", **asked})

    refused(openai.NotFoundError, "model: got 'big'; allowed: 'small'", model="big")
    refused(openai.BadRequestError, "max_tokens: got 500; allowed: 1 to", max_tokens=500)
    refused(openai.BadRequestError, "max_tokens: got 0; allowed: 1 to", max_tokens=0)
    refused(openai.BadRequestError, "temperature: got -1", temperature=-1)
    refused(openai.BadRequestError, "prompt: got '600 tokens'", prompt=[5] * 600)
    refused(openai.BadRequestError, "prompt: got", prompt=[1 << 40])
    for odd in ([], ["x", 1], [True], {"text": "x"}, 5):
        refused(
            openai.BadRequestError, "prompt: got .* allowed: a text or tokens below .*, or a list of them", prompt=odd
        )
    refused(
        openai.BadRequestError, "prompt: got '17 with n 128'; allowed: prompts for 2048 texts", prompt=["x"] * 17, n=128
    )
    refused(openai.BadRequestError, "best_of: got 3; allowed: nothing", best_of=3)
    refused(openai.BadRequestError, "top_p: got 7", top_p=7)
    refused(openai.BadRequestError, "n: ", n=0)
    with pytest.raises(openai.AuthenticationError, match="the key that the server was started with"):
        client.with_options(api_key="other").models.list()
    with pytest.raises(openai.BadRequestError, match="body: allowed: a JSON object, sent as application/json"):
        client.post("/completions", cast_to=object, body="x")
    half: Any = "\ud800"  # of a pair, which JSON can write
    as_json: Any = {"headers": {"content-type": "application/json"}}
    for path, asked in (
        ("/completions", {"prompt": half}),
        ("/chat/completions", {"messages": [TURN | {"content": half}]}),
    ):
        body = json.dumps({"model": "small", **asked}).encode()
        with pytest.raises(openai.BadRequestError, match=r"text: got .*ud800.*allowed: whole characters"):
            client.post(path, cast_to=object, content=body, options=as_json)
    with pytest.raises(openai.BadRequestError, match="top_logprobs: got 2; allowed: with logprobs true alone"):
        client.chat.completions.create(model="small", messages=[TURN], top_logprobs=2)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(input="x", model="small")


def test_a_port_that_is_taken_is_refused(sampler: Sampler) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"port: got '127\.0\.0\.1:"):
        serve(Served(sampler, "small"), "127.0.0.1", taken.getsockname()[1])


def test_a_chat_in_the_terminal_remembers_until_it_begins_anew(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n\nb\n/new\na\n" + "much " * 200 + "\n"))
    chat(sampler, Sampling(tokens=2, temperature=0), template=TEMPLATE)
    said = capsys.readouterr()
    replies = said.out.splitlines()

    def alone(*words: str) -> str:
        turns = [{"role": ("user", "assistant")[at % 2], "content": word} for at, word in enumerate(words)]
        return sampler.complete([sampler.tokenizer.encode_chat(turns, TEMPLATE)], Sampling(2, 0))[0].text

    first = alone("a")
    assert replies == "\n".join([first, alone("a", first, "b"), first, ""]).splitlines()
    assert "begins anew, Ctrl-D ends" in said.err
    assert "error: messages: got" in said.err


def test_a_chat_without_a_template_is_refused(sampler: Sampler) -> None:
    with pytest.raises(ConfigError, match="chat_template: got nothing"):
        chat(sampler, Sampling())
