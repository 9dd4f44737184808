"""A teacher behind an OpenAI-compatible server: a loopback server answers with what a tiny model computes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from language_objective_helpers import collect, make, make_student
from objective_helpers import accumulate, network_of, nudge, whole

from vidalign.context import TrainContext
from vidalign.errors import RecipeError, UserError
from vidalign.objectives.base import Experience, Objective, Phase
from vidalign.recipe import load_recipe
from vidalign.students.language import LanguageStudent

K = 5
SERVER = "teacher={{name: endpoint, url: '{url}', model: tiny, key: TINY_KEY, top_logprobs: 5}}"


class Server(ThreadingHTTPServer):
    """Answers completions as vLLM does: echoed prompts with the likeliest tokens and the token itself."""

    model: LanguageStudent
    asked: list[dict[str, Any]]
    outages: list[int]
    """Codes with which the next requests are refused."""
    change: Any = staticmethod(lambda answer: answer)

    def places(self, ids: list[int]) -> list[dict[str, float] | None]:
        with torch.no_grad():
            logp = self.model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        out: list[dict[str, float] | None] = [None]
        for place, token in enumerate([*ids[1:], 0]):  # one more token, which was generated
            best = logp[place].topk(K).indices.tolist()
            out.append({f"token_id:{one}": float(logp[place, one]) for one in {*best, token}})
        return out


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        choices = [
            {"index": n, "logprobs": {"top_logprobs": self.server.places(ids)}} for n, ids in enumerate(body["prompt"])
        ]
        if self.server.outages:
            self.send_error(self.server.outages.pop())
            return
        answer = json.dumps(self.server.change({"choices": choices[::-1]})).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words: Any) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    make_student(tmp_path / "teacher.safetensors", 2, tied=False)
    monkeypatch.setenv("TINY_KEY", "secret")
    with Server(("127.0.0.1", 0), Handler) as made:
        made.model, made.asked = LanguageStudent.load(tmp_path / "teacher.safetensors").double(), []
        made.outages = []
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def build(server: Server, folder: Path, name: str, *more: str) -> tuple[Objective, TrainContext]:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return make(folder, name, SERVER.format(url=url), *more)


def reference(server: Server, ctx: TrainContext, data: Experience, name: str) -> float:
    """K + 1 buckets, every response alone: the teacher's K tokens, and the rest."""
    means = []
    for n in range(len(data)):
        keep = data["response"][n : n + 1]
        length = int(keep.sum())
        example = data.prompts[int(data.group_index[n])]
        batch = network_of(ctx).compose([example], data["response_ids"][n : n + 1, :length], keep[:, :length])
        here = slice(-length - 1, -1)
        ours, theirs = (model.model(batch.ids).logits[0, here].softmax(-1) for model in (network_of(ctx), server.model))
        index = theirs.topk(K).indices
        s, t = (torch.cat([p.gather(1, index), 1 - p.gather(1, index).sum(1, keepdim=True)], 1) for p in (ours, theirs))
        m = (s + t) / 2
        kl = (
            (s * (s / t).log()).sum(1)
            if name == "opd"
            else ((s * (s / m).log()).sum(1) + (t * (t / m).log()).sum(1)) / 2
        )
        means.append(kl.mean())
    return float(torch.stack(means).mean())


@pytest.mark.parametrize("name", ["opd", "gkd"])
def test_the_loss_is_that_of_the_buckets(name: str, server: Server, tmp_path: Path) -> None:
    objective, ctx = build(server, tmp_path, name)
    data = collect(objective, ctx)
    nudge(network_of(ctx))
    with torch.no_grad():
        expected = reference(server, ctx, data, name)
    assert whole(objective, ctx, data).loss.item() == pytest.approx(expected, rel=1e-5)
    last = server.asked[-1]
    assert last["path"] == "/v1/completions" and last["key"] == "Bearer secret" and last["model"] == "tiny"
    assert last["echo"] and last["logprobs"] == K and len(last["prompt"]) == len(data)


def test_the_gradient_is_that_of_the_loss(server: Server, tmp_path: Path) -> None:
    """Against a finite difference along the gradient, in fp64."""
    objective, ctx = build(server, tmp_path, "opd")
    data, step = collect(objective, ctx), 1e-5
    _, gradient, _ = accumulate(objective, ctx, data, Phase(), 64)
    norm = torch.stack([one.square().sum() for one in gradient.values()]).sum().sqrt()
    losses = []
    for sign in (1, -2):
        with torch.no_grad():
            for key, p in network_of(ctx).named_parameters():
                if key in gradient:
                    p.add_(gradient[key], alpha=sign * step / float(norm))
        losses.append(whole(objective, ctx, data).loss.item())
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(norm), rel=1e-3)


def test_micro_batches_add_up(server: Server, tmp_path: Path) -> None:
    objective, ctx = build(server, tmp_path, "gkd")
    data = collect(objective, ctx)
    assert accumulate(objective, ctx, data, Phase(), 4)[0] == pytest.approx(
        accumulate(objective, ctx, data, Phase(), 64)[0], rel=1e-6
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda answer: {"error": "no echo"}, "cannot be read: KeyError: 'choices'"),
        (lambda answer: _renamed(answer, lambda key: "word"), "'word' is no token id"),
        (lambda answer: _renamed(answer, lambda key: "token_id:4000"), "does not report 5 tokens"),
        (lambda answer: _renamed(answer, lambda key: f"{key}000"), "the student, with 102 entries, has not"),
    ],
)
def test_a_server_that_cannot_teach_is_named_before_training(
    change: Any, expected: str, server: Server, tmp_path: Path
) -> None:
    server.change = change
    with pytest.raises(UserError, match=r"the server http://127.0.0.1:\d+/v1 cannot teach - teacher.url") as error:
        build(server, tmp_path, "opd")
    assert expected in str(error.value)


def _renamed(answer: dict[str, Any], name: Any) -> dict[str, Any]:
    for choice in answer["choices"]:
        places = choice["logprobs"]["top_logprobs"]
        choice["logprobs"]["top_logprobs"] = [p and {name(key): value for key, value in p.items()} for p in places]
    return answer


def test_a_server_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot teach .* refused"):
        make(tmp_path, "opd", SERVER.format(url="http://127.0.0.1:9/v1"))
    with pytest.raises(UserError, match="the temperatures differ - student.sampling.temperature"):
        build(server, tmp_path, "opd", "student.sampling.temperature=0.5")


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("tokens/opd", ["teacher={name: endpoint}"], "the teacher has no server"),
        ("tokens/dopd", ["teacher={name: endpoint, url: 'http://x/v1'}"], "'dopd' needs more; opd and gkd do not"),
        ("tokens/opd", ["teacher={name: endpoint, url: 'http://x/v1'}", "objective.top_k=5"], "top_k has no use here"),
        (
            "tokens/opd",
            ["teacher={name: endpoint, url: 'http://x/v1', top_logprobs: 0}"],
            "top_logprobs must be at least 1",
        ),
    ],
)
def test_mistakes_are_named_before_any_work(recipe: str, overrides: list[str], expected: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, overrides)
    assert expected in str(error.value)


def test_a_server_that_was_away_for_a_moment_teaches_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("vidalign.requests.time.sleep", waits.append)
    _, ctx = build(server, tmp_path, "opd")
    ids = [[5, 6, 7]]
    before = ctx.teacher._reported(ids, [2])
    server.outages = [429, 503]
    assert ctx.teacher._reported(ids, [2]) == before and waits == [1.0, 2.0]
    server.outages = [503] * 4
    with pytest.raises(UserError, match=r"cannot teach - .*503.* - start the server again, and go on with --resume"):
        ctx.teacher._reported(ids, [2])
    server.outages, waits[:] = [404], []
    with pytest.raises(UserError, match="404"):
        ctx.teacher._reported(ids, [2])
    assert not waits, "what it refuses it refuses again"
