"""A trained model over HTTP, as OpenAI's clients speak: completions, chat completions and models, streamed or whole.

The one file of this package that may know the web. What a request asks beyond what is here is refused by name, but for
what changes no answer. Requests that come at the same time take turns, a token each.

B prompts of a request, each with `n` choices.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from teragpt.config import ConfigError, Problem
from teragpt.inference.generate import MOST_LOGPROBS, Drawn, Sampling
from teragpt.inference.sample import Completion, Piece, Sampler

MOST_CHOICES = 128
MOST_TEXTS = 2048  # of a request, over its prompts: keys and values of all are held at once
SILENT = {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}  # change no answer
USUAL = {"best_of": 1, "response_format": {"type": "text"}, "modalities": ["text"]}  # said, they ask for nothing either
OFF: tuple[object, ...] = (None, 0, False, [], {}, "auto", "none")  # values of a setting that asks for nothing


class Asked(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="allow")

    model: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, given: Any) -> Any:
        """What is null is as if it were not there, which OpenAI's clients send for a setting that is None."""
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given

    def sampling(self, room: int, tokens: int | None, logprobs: int | None) -> Sampling:
        """How tokens are drawn, where the context has `room` for so many. Raises ConfigError."""
        if tokens is not None and not 1 <= tokens <= room:
            raise ConfigError([Problem("max_tokens", tokens, f"1 to {room}, which the context has room for")])
        problems = [
            Problem(name, value, "nothing: this server does not know it")
            for name, value in (self.model_extra or {}).items()
            if name not in SILENT and value not in (*OFF, USUAL.get(name))
        ]
        if problems:
            raise ConfigError(problems)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        most = room if tokens is None else tokens
        return Sampling(most, self.temperature, self.top_k, self.top_p, self.seed, stop, logprobs)


class CompletionRequest(Asked):
    """`POST /v1/completions`; a prompt is a text or tokens, or a list of either."""

    prompt: Any
    max_tokens: int = 16
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    role: str
    content: str | list[Part]


class ChatRequest(Asked):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MOST_LOGPROBS)

    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are told; None: no log-probabilities are. Raises ConfigError."""
        if self.top_logprobs and not self.logprobs:
            raise ConfigError([Problem("top_logprobs", self.top_logprobs, "with logprobs true alone")])
        return self.top_logprobs if self.logprobs else None


@dataclass(frozen=True)
class Served:
    """A model that is served: what writes, what it is called, the chat's template, and the key that callers need."""

    sampler: Sampler
    name: str
    template: str | None = None
    key: str | None = None

    def check(self, model: str) -> None:
        """Refuse a request for another model. Raises HTTPException."""
        if model != self.name:
            raise HTTPException(404, f"model: got {model!r}; allowed: {self.name!r}")

    def room(self, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens that the context still has room for after the longest prompt. Raises ConfigError."""
        longest, context = max(map(len, prompts), default=0), self.sampler.context
        if longest >= context:
            raise ConfigError([Problem("prompt", f"{longest} tokens", f"fewer than the context's {context}")])
        return context - longest

    def tokens(self, prompt: Any) -> list[list[int]]:
        """The tokens of each prompt. Raises ConfigError."""
        tokenizer = self.sampler.tokenizer

        def fits(one: object) -> bool:
            known = isinstance(one, list) and all(type(id_) is int and 0 <= id_ < tokenizer.vocabulary for id_ in one)
            return known or isinstance(one, str)

        given = [prompt] if isinstance(prompt, str) or (prompt and fits(prompt)) else prompt
        if not isinstance(given, list) or not given or not all(map(fits, given)):
            allowed = f"a text or tokens below {tokenizer.vocabulary}, or a list of them that is not empty"
            raise ConfigError([Problem("prompt", "[...]" if isinstance(prompt, list) and prompt else prompt, allowed)])
        return [tokenizer.encode(one) if isinstance(one, str) else list(one) for one in given]

    def spell(self, token: int) -> str:
        """A token's text."""
        return self.sampler.tokenizer.decode([token])


def make_app(served: Served) -> FastAPI:
    """The web application. Errors have the shape of OpenAI's."""
    app = FastAPI(title="TeraGPT", docs_url=None, redoc_url=None, openapi_url=None)
    started = int(time.time())
    model = {"id": served.name, "object": "model", "created": started, "owned_by": "teragpt"}

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if served.key is not None and not hmac.compare_digest(given.encode(), served.key.encode()):
            raise HTTPException(401, "the key that the server was started with is needed: Authorization: Bearer KEY")

    checked: list[Any] = [Depends(allowed)]

    @app.get("/v1/models", dependencies=checked)
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", dependencies=checked)
    def one(name: str) -> dict[str, Any]:
        served.check(name)
        return model

    @app.post("/v1/completions", dependencies=checked)
    def complete(asked: CompletionRequest) -> Response:
        served.check(asked.model)
        prompts = served.tokens(asked.prompt)
        sampling = asked.sampling(served.room(prompts), asked.max_tokens, asked.logprobs)
        return answer(TextForm(served), prompts, sampling, asked)

    @app.post("/v1/chat/completions", dependencies=checked)
    def chat(asked: ChatRequest) -> Response:
        served.check(asked.model)
        messages = [{"role": one.role, "content": plain(one.content)} for one in asked.messages]
        prompts = [served.sampler.tokenizer.encode_chat(messages, served.template)]
        tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        sampling = asked.sampling(served.room(prompts), tokens, asked.likeliest())
        return answer(ChatForm(served), prompts, sampling, asked)

    tell_errors(app)
    assert all((models, one, complete, chat))
    return app


def tell_errors(app: FastAPI) -> None:
    """Have an application answer errors in the shape of OpenAI's."""

    @app.exception_handler(ConfigError)
    def refused(_: Request, error: ConfigError) -> Response:
        return problem(400, str(error), error.problems[0].field)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid" or list(first["loc"]) == ["body"]:
            return problem(400, "body: allowed: a JSON object, sent as application/json", None)
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return problem(400, f"{where}: {first['msg']}", where)

    @app.exception_handler(HTTPException)
    def said(_: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), None)

    @app.exception_handler(Exception)
    def failed(_: Request, __: Exception) -> Response:
        return problem(500, "the server has failed at this request; its log says at what", None)

    assert all((refused, invalid, said, failed))


def problem(status: int, sentence: str, param: str | None) -> Response:
    """An error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 500: "server_error"}
    said = {"message": sentence, "type": kinds.get(status, "invalid_request_error"), "param": param, "code": None}
    return JSONResponse({"error": said}, status)


def plain(content: str | list[Part]) -> str:
    """A message's text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


# --- replies --------------------------------------------------------------------------------------------------------


class TextForm:
    """How `/v1/completions` says what was written."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, served: Served) -> None:
        self.served = served

    def opening(self, choices: int) -> list[dict[str, Any]]:
        """What a stream begins with."""
        del choices
        return []

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A choice of a stream's event."""
        text = {"index": piece.row, "text": piece.text, "finish_reason": piece.finish}
        return {**text, "logprobs": self.logprobs(piece.drawn)}

    def choice(self, index: int, made: Completion) -> dict[str, Any]:
        """A choice of a whole reply."""
        return self.chunk(Piece(index, made.text, tuple(made.drawn), made.finish))

    def logprobs(self, drawn: Sequence[Drawn]) -> dict[str, Any] | None:
        """Tokens with their log-probabilities, where they were asked for."""
        if not drawn or drawn[0].logprob is None:
            return None
        spell = self.served.spell
        return {
            "tokens": [spell(one.token) for one in drawn],
            "token_logprobs": [one.logprob for one in drawn],
            "top_logprobs": [{spell(name): score for name, score in one.likeliest} for one in drawn],
        }


class ChatForm:
    """How `/v1/chat/completions` says it."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, served: Served) -> None:
        self.served = served

    def opening(self, choices: int) -> list[dict[str, Any]]:
        """What a stream begins with: who speaks."""
        start = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}
        return [{"index": index, **start} for index in range(choices)]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A choice of a stream's event."""
        delta = {"content": piece.text} if piece.text else {}
        return {
            "index": piece.row,
            "delta": delta,
            "finish_reason": piece.finish,
            "logprobs": self.logprobs(piece.drawn),
        }

    def choice(self, index: int, made: Completion) -> dict[str, Any]:
        """A choice of a whole reply."""
        message = {"role": "assistant", "content": made.text}
        finish = {"finish_reason": made.finish, "logprobs": self.logprobs(made.drawn)}
        return {"index": index, "message": message, **finish}

    def logprobs(self, drawn: Sequence[Drawn]) -> dict[str, Any] | None:
        """Tokens with their log-probabilities, where they were asked for."""
        if not drawn or drawn[0].logprob is None:
            return None
        return {
            "content": [
                {
                    **self.entry(one.token, one.logprob),
                    "top_logprobs": [self.entry(*likely) for likely in one.likeliest],
                }
                for one in drawn
            ]
        }

    def entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        """A token and its log-probability."""
        text = self.served.spell(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def answer(form: TextForm | ChatForm, prompts: list[list[int]], sampling: Sampling, asked: Asked) -> Response:
    """The reply to a request, whole or as a stream of server-sent events. Raises ConfigError for too many texts."""
    if len(prompts) * asked.n > MOST_TEXTS:
        given = f"{len(prompts)} with n {asked.n}"
        raise ConfigError([Problem("prompt", given, f"prompts for {MOST_TEXTS} texts at most")])
    rows = [prompt for prompt in prompts for _ in range(asked.n)]
    head = {"id": f"{form.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": form.served.name}
    read = sum(map(len, prompts))
    source = form.served.sampler.stream(rows, sampling)
    pieces = chain([next(source)], source)  # what cannot be written at all is refused while there is no reply yet
    after = BackgroundTask(source.close)  # also where a client has gone: keys and values go at once
    if asked.stream:
        told = bool((asked.stream_options or {}).get("include_usage"))
        every = sampling.logprobs is not None
        events = stream(form, pieces, len(rows), {**head, "object": form.part}, read if told else None, every=every)
        return StreamingResponse(events, media_type="text/event-stream", background=after)
    made = whole(form, pieces, len(rows), {**head, "object": form.whole}, read)
    return StreamingResponse(made, media_type="application/json", background=after)


def whole(
    form: TextForm | ChatForm, pieces: Iterator[Piece], rows: int, head: dict[str, Any], read: int
) -> Iterator[str]:
    """A whole reply, once it is written; nothing at each piece, where it is seen that a client has gone."""
    made = [Completion() for _ in range(rows)]
    for piece in pieces:
        made[piece.row].add(piece)
        yield ""
    choices = [form.choice(index, one) for index, one in enumerate(made)]
    used = usage(read, sum(len(one.drawn) for one in made))
    yield json.dumps({**head, "choices": choices, "usage": used}, ensure_ascii=False)


def stream(
    form: TextForm | ChatForm,
    pieces: Iterator[Piece],
    rows: int,
    head: dict[str, Any],
    read: int | None,
    *,
    every: bool,
) -> Iterator[str]:
    """Server-sent events of what is written, as it comes; `every` piece, or those that show something.

    At the end its tokens and the `read` ones are counted.
    """
    for choice in form.opening(rows):
        yield event({**head, "choices": [choice]})
    written = 0
    for piece in pieces:
        written += len(piece.drawn)
        if piece.text or piece.finish or every:
            yield event({**head, "choices": [form.chunk(piece)]})
    if read is not None:
        yield event({**head, "choices": [], "usage": usage(read, written)})
    yield "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def usage(read: int, written: int) -> dict[str, int]:
    """Tokens that were read and written."""
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def serve(served: Served, host: str, port: int, *, as_json: bool = False) -> None:
    """Serve until the process is told to stop; port 0 takes a free one. Raises ConfigError where none can be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ConfigError([Problem("port", f"{host}:{port}", f"an address that is free ({error})")]) from None
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}/v1"
        print(json.dumps({"model": served.name, "url": url}) if as_json else f"{served.name} at {url}", flush=True)
        server = uvicorn.Server(uvicorn.Config(make_app(served), log_level="warning"))
        asyncio.run(server.serve([listening]))
