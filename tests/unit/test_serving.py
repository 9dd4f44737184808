"""`vidalign serve`: the running server keeps its schema, its limits and its promises."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import fastapi
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from serving_helpers import CLIPS, MEANS, PROMPTS, SCHEMA, Mean, ask, npz, packed, raw, serving

from vidalign.serving import wire
from vidalign.serving.app import create_app
from vidalign.serving.failure import LoadError, ServeError
from vidalign.serving.loading import Served, load, parse_settings
from vidalign.serving.run import Server
from vidalign.serving.service import Limits, Service

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reward() -> Mean:
    return Mean()


@pytest.fixture(scope="module")
def server(reward: Mean) -> Iterator[Server]:
    with serving(reward, max_mb=1.0, batch=8) as running:
        yield running


# --- the contract ---


def checked(answer: Any, schema: dict[str, Any]) -> None:
    """An answer is what the schema says; the part of JSON schema that ours uses."""
    if "$ref" in schema:
        return checked(answer, SCHEMA["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            try:
                return checked(answer, one)
            except AssertionError:
                pass
        raise AssertionError(f"{answer!r} is none of {schema['anyOf']}")
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    if "type" in schema:
        assert isinstance(answer, kinds[schema["type"]]), (answer, schema)
    for key in schema.get("required", ()):
        assert key in answer
    for key, one in schema.get("properties", {}).items():
        checked(answer[key], one)
    if isinstance(schema.get("additionalProperties"), dict):
        for one in answer.values():
            checked(one, schema["additionalProperties"])
    if "items" in schema:
        for one in answer:
            checked(one, schema["items"])
    return None


def test_the_schema_that_is_checked_in_is_that_of_the_server(server: Server) -> None:
    """Other versions of FastAPI may word it otherwise."""
    status, _, served = ask(server, "/openapi.json")
    assert status == 200 and served == create_app(Service(lambda: Served(Mean(), "cpu"), Limits())).openapi()
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if f"fastapi=={fastapi.__version__}\n" in constraints:
        assert served == SCHEMA
    assert served["paths"].keys() == SCHEMA["paths"].keys()
    for path, methods in SCHEMA["paths"].items():
        for method, about in methods.items():
            assert served["paths"][path][method]["responses"].keys() == about["responses"].keys()


REQUESTS = {
    "scores": (200, {"body": raw()}),
    "health": (200, {"path": "/health"}),
    "ready": (200, {"path": "/ready"}),
    "reward": (200, {"path": "/v1/reward"}),
    "failed": (500, {"body": raw(prompts=["a", "broken", "c"])}),
    "empty": (415, {"method": "POST"}),
    "a form": (415, {"body": b"x=1", "Content-Type": "application/x-www-form-urlencoded"}),
    "short": (422, {"body": b"x"}),
    "large": (413, {"body": raw(np.zeros((1, 1, 3, 1000, 1000), np.uint8))}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_keep_the_schema(server: Server, name: str) -> None:
    expected, request = REQUESTS[name]
    status, _, answer = ask(server, **request)
    assert status == expected, answer
    path = request.get("path", "/v1/score")
    (about,) = SCHEMA["paths"][path].values()
    checked(answer, about["responses"][str(status)]["content"]["application/json"]["schema"])
    assert status == 200 or answer["error"]["message"]


@pytest.mark.parametrize(("path", "method", "status"), [("/nothing", "GET", 404), ("/v1/score", "GET", 405)])
def test_errors_of_the_framework_have_the_same_form(server: Server, path: str, method: str, status: int) -> None:
    found, _, answer = ask(server, path, method=method)
    assert found == status and answer["error"].keys() == {"type", "message", "fix"}


def test_what_a_client_pins(server: Server) -> None:
    _, _, about = ask(server, "/v1/reward")
    identity = about.pop("identity")
    settings = {"scale": 1.0, "seconds": 0.0}
    assert about == {"name": "mean", "version": "3", "settings": settings, "batch": 8, "max_bytes": 2**20}
    assert ask(server, body=raw())[2]["identity"] == identity
    assert Served(Mean(Mean.Config(scale=2.0)), "cpu").identity != identity == Served(Mean(), "cpu").identity


# --- the wire ---


def video(frames: NDArray[Any], rate: int) -> bytes:
    """An mp4 file of frames ``[F, H, W, 3]``."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def videos(*clips: NDArray[Any], rate: int = 12, **header: Any) -> bytes:
    files = [video(clip, rate) for clip in clips]
    usual = {"prompts": PROMPTS[: len(clips)], "encoding": "mp4", "sizes": [len(file) for file in files]}
    return packed({**usual, **header}, b"".join(files))


@pytest.mark.parametrize(
    "body",
    [
        raw(),
        raw((CLIPS / 255).astype(np.float32)),
        raw((CLIPS / 255).astype(np.float16)),
        npz(CLIPS),
        npz(CLIPS, save=np.savez_compressed),
        npz(np.asfortranarray(CLIPS)),
        npz((CLIPS / 255).astype(">f4")),
        bytes(wire.encode(CLIPS, PROMPTS)),
    ],
    ids=["uint8", "float32", "float16", "npz", "compressed", "fortran", "big-endian", "encode"],
)
def test_encodings_of_clips(server: Server, reward: Mean, body: bytes) -> None:
    status, _, answer = ask(server, body=body)
    assert status == 200, answer
    assert answer["scores"]["mean"] == pytest.approx(MEANS, abs=2e-4 if b"float16" in body else 1e-6)
    assert answer["scores"]["first"] == pytest.approx((CLIPS[:, 0, 0, 0, 0] / 255).tolist(), abs=3e-4)
    assert reward.calls[-1] == PROMPTS and reward.informed[-1] == ([{}, {}, {}], None)


def test_clips_as_mp4(server: Server, reward: Mean) -> None:
    """The frame rate is that of the files unless the header says another."""
    grey = [np.full((5, 32, 48, 3), level, np.uint8) for level in (60, 200)]
    status, _, answer = ask(server, body=videos(*grey))
    assert status == 200, answer
    assert answer["scores"]["mean"] == pytest.approx([60 / 255, 200 / 255], abs=0.02)
    assert reward.informed[-1] == ([{}, {}], 12.0)
    ask(server, body=videos(*grey, fps=24.0, metadata=[{"dimension": "colour"}, {}]))
    assert reward.informed[-1] == ([{"dimension": "colour"}, {}], 24.0)


def test_a_reward_may_need_the_frame_rate() -> None:
    class Timed(Mean):
        def score(self, clips: torch.Tensor, prompts: list[str], fps: float) -> dict[str, torch.Tensor]:
            return super().score(clips, prompts, fps=fps)

    with serving(Timed(), warm_up=True) as server:
        status, _, answer = ask(server, body=raw())
        assert status == 422 and "mean needs the frame rate" in answer["error"]["message"]
        assert ask(server, body=raw(fps=8.0))[0] == 200


def test_failed_items_are_null(server: Server) -> None:
    _, _, answer = ask(server, body=raw(prompts=["a", "unknown", "c"]))
    assert [score is None for score in answer["scores"]["mean"]] == [False, True, False]


class Trap:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a body was unpickled",))


def cut(body: bytes) -> bytes:
    return body[:-7]


def bomb() -> bytes:
    """An npz file of some kilobytes with 100 MB of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("clips.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (1, 100, 3, 600, 600)}
        )
        file.write(bytes(2**20))
    return packed({"prompts": ["a"], "encoding": "npz"}, buffer.getvalue())


PLAIN = {"prompts": PROMPTS, "encoding": "raw", "dtype": "uint8", "shape": list(CLIPS.shape)}
MISTAKES = {
    "no header": (b"", 415, ""),
    "a long header": (struct.pack("<Q", 2**60) + b"{}", 422, "shorter than its header says"),
    "no JSON": (struct.pack("<Q", 2) + b"{]", 422, "no JSON"),
    "a list": (struct.pack("<Q", 2) + b"[]", 422, "no JSON object"),
    "deep": (struct.pack("<Q", 200_000) + b"[" * 200_000, 422, "no JSON"),
    "a misspelt key": (raw(promts=[]), 422, "unknown key 'promts' in the header"),
    "no prompts": (packed({**PLAIN, "prompts": []}, CLIPS.tobytes()), 422, "prompts must be a list"),
    "numbers": (packed({**PLAIN, "prompts": [1, 2, 3]}, CLIPS.tobytes()), 422, "prompts must be a list"),
    "few prompts": (raw(prompts=["a"]), 422, "3 clips and 1 prompts"),
    "an encoding": (raw(encoding="pickle"), 422, "encoding is 'pickle'"),
    "a type": (raw(dtype="object"), 422, "dtype is 'object'"),
    "a shape": (raw(shape=[3, 2, 3, 4, -4]), 422, "shape is"),
    "no colours": (raw(CLIPS.reshape(3, 3, 2, 4, 4)), 422, "the clips have the shape"),
    "cut": (cut(raw()), 422, "the payload has"),
    "a rate": (raw(fps=0), 422, "fps is 0"),
    "a truth as rate": (raw(fps=True), 422, "fps is True"),
    "metadata": (raw(metadata=[{}]), 422, "one object a clip"),
    "0..255 as floats": (raw(CLIPS.astype(np.float32)), 422, "far outside 0..1"),
    "npz of objects": (npz(np.array([Trap()], object)), 422, "holds object"),
    "npz of another name": (npz(CLIPS, "videos"), 422, "no npz file"),
    "npz that is cut": (cut(npz(CLIPS)), 422, "no npz file"),
    "npz of wide numbers": (npz(CLIPS.astype(np.float64)), 422, "holds float64"),
    "a bomb": (bomb(), 413, "limit is 1"),
    "no mp4": (packed({"prompts": ["a"], "encoding": "mp4", "sizes": [4]}, b"abcd"), 422, "is no video"),
    "mp4 sizes": (packed({"prompts": ["a"], "encoding": "mp4", "sizes": [3]}, b"abcd"), 422, "sizes say 3"),
    "several lengths": (videos(*(np.zeros((f, 32, 32, 3), np.uint8) for f in (2, 3))), 422, "several lengths"),
    "a long mp4": (videos(np.zeros((30, 160, 160, 3), np.uint8)), 413, "limit is 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bodies_that_are_refused(server: Server, name: str) -> None:
    body, expected, says = MISTAKES[name]
    status, _, answer = ask(server, body=body, method="POST")
    assert status == expected and says in answer["error"]["message"], answer
    assert ask(server, body=raw())[0] == 200, "the server goes on"


def test_random_bodies_are_refused(server: Server) -> None:
    """Random bytes, and bodies with random changes: an answer of 200, 413 or 422, and never a fault of the server."""
    random = np.random.default_rng(0)
    for n in range(120):
        body = bytearray((raw(), npz(CLIPS), videos(np.zeros((2, 32, 32, 3), np.uint8)))[n % 3])
        for place in random.integers(0, len(body), random.integers(1, 12)):
            body[place] = random.integers(0, 256)
        status, _, answer = ask(server, body=bytes(body))
        assert status in (200, 413, 422), (status, answer)


# --- the reward ---


OWN = """
from dataclasses import dataclass
from typing import Literal

class Bright:
    name, version = "bright", "7"

    @dataclass
    class Config:
        factor: float = 1.0
        pool: Literal["mean", "max"] = "mean"
        frames: int | None = None
        revision: str = "main"

        def __post_init__(self):
            if self.factor <= 0:
                raise ValueError("factor must be positive")

    def __init__(self, config):
        self.config = config

    def score(self, clips, prompts):
        return {"bright": clips.mean((1, 2, 3, 4)) * self.config.factor}


class Plain:
    name = "plain"

    def score(self, clips, prompts):
        return {"plain": [0.5] * len(prompts), "whole": 1.0}
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own_reward.py").write_text(OWN)
    return str(tmp_path / "own_reward.py")


def test_a_reward_of_a_file(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = load(f"{own}:Bright", parse_settings(["factor=2", "pool=max", "revision=1234567"]), "cpu")
    assert (served.name, served.version) == ("bright", "7")
    assert served.settings == {"factor": 2.0, "pool": "max", "frames": None, "revision": "1234567"}
    clips = torch.full((2, 1, 3, 4, 4), 0.25)
    assert served(clips, ["a", "b"], [], None) == {"bright": [0.5, 0.5]}
    plain = load(f"{own}:Plain", {}, "cpu")
    assert plain.version == "1" and plain(clips, ["a", "b"], [], 8.0) == {"plain": [0.5, 0.5]}
    monkeypatch.syspath_prepend(tmp_path)
    assert load("own_reward:Plain", {}, "cpu").name == "plain"


MISTAKEN = {
    ":Bright factr=1": "no setting 'factr' - did you mean 'factor'?",
    ":Bright factor=high": "factor is 'high' - it is a float",
    ":Bright pool=min": "pool is 'min'",
    ":Bright frames=1.5": "frames is 1.5",
    ":Bright factor=-1": "factor must be positive",
    ":Bright factor": "'factor' is no setting - write key=value",
    ":Brigth": "has no 'Brigth' - did you mean 'Bright'?",
    ":Plain a=1": "has no settings",
    ":dataclass": "has no name and no score",
    "": "names no reward - give file.py:Class",
}


@pytest.mark.parametrize("given", MISTAKEN)
def test_rewards_and_settings_that_do_not_exist(own: str, given: str) -> None:
    target, *pairs = (own + given).split(" ")
    with pytest.raises(LoadError, match=re.escape(MISTAKEN[given])):
        load(target, parse_settings(pairs), "cpu")


@pytest.mark.parametrize("device", ["nonsense", "meta:x"])
def test_a_device_that_is_not_there(own: str, device: str) -> None:
    with pytest.raises(LoadError, match=f"there is no device '{device}' here"):
        load(f"{own}:Bright", {}, device)


def test_files_and_modules_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no file"):
        load(f"{tmp_path}/none.py:A", {}, "cpu")
    with pytest.raises(LoadError, match="no_such_module cannot be imported"):
        load("no_such_module:A", {}, "cpu")
    with pytest.raises(LoadError, match="':A' names no reward"):
        load(":A", {}, "cpu")


FAULTY = {
    "def broken(:": "faulty.py cannot be run: SyntaxError",
    "raise RuntimeError('no weights')": "faulty.py cannot be run: RuntimeError: no weights - see .*faulty.py:1",
    "class A:\n    name = 'a'\n    score = 1\n    def __init__(self): open('/none')": "A cannot be made: FileNotFound",
    "from dataclasses import dataclass\nclass A:\n    name = 'a'\n    score = 1\n    @dataclass\n    class Config:\n"
    "        path: str\n": "missing 1 required positional argument: 'path'",
}


@pytest.mark.parametrize("text", FAULTY)
def test_a_fault_of_a_reward_is_its_own(text: str, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(text, encoding="utf-8")
    with pytest.raises(LoadError, match=FAULTY[text]):
        load(f"{tmp_path}/faulty.py:A", {}, "cpu")


@pytest.mark.parametrize(
    ("returned", "says"),
    [([1.0], "returned a list"), ({}, "returned nothing under 'mean'"), ({"mean": [1.0]}, "for 3 clips")],
)
def test_a_reward_that_breaks_its_contract_is_a_failure(returned: Any, says: str) -> None:
    class Broken(Mean):
        def score(self, *args: Any, **known: Any) -> Any:
            return returned

    with serving(Broken()) as server:
        status, _, answer = ask(server, body=raw())
    assert status == 500 and says in answer["error"]["message"]


def test_decoding_is_that_of_encoding() -> None:
    body = wire.encode(CLIPS, PROMPTS, fps=8.0, metadata=[{"n": n} for n in range(3)])
    found = wire.decode(body, 2**20)
    assert np.array_equal(found.clips, CLIPS) and found.prompts == PROMPTS
    assert found.fps == 8.0 and found.metadata == [{"n": n} for n in range(3)]
    with pytest.raises(ServeError):
        wire.decode(body[:-1], 2**20)
