"""A reward behind HTTP, scored by `vidalign serve` or `vidalign-serve` on one machine or several.

Clips are sent in parts that a server can score in one call. Which server gets which part depends on their load, the
order of the scores does not. Before a run works, every server must run the reward, version and settings that the recipe
pins, and the same ones as the others. Format and server: `vidalign.serving`.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

import torch

from vidalign.deferred import without_gradient
from vidalign.errors import UserError, nearest
from vidalign.ranges import require
from vidalign.rewards.endpoints import AnswerError, Endpoints
from vidalign.serving.wire import encode

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft

AT_ONCE = 2
"""Requests to one server at a time: it reads one while it scores another."""
HEADER = 1024
"""Bytes of a request beside clips, prompts and metadata, at most."""
EXAMPLES = {"urls": '["http://127.0.0.1:8000"]', "reward": "hps_v3"}
"""Settings without a default."""
ABOUT = {"name", "version", "settings", "identity", "batch", "max_bytes"}
"""What a server says of itself."""
LOOK = 0.5
"""Seconds between two looks for warnings while servers work."""


class Remote:
    """Scores of a reward that servers run; NaN for a clip that they could not score."""

    name: ClassVar[str] = "remote"
    judges: ClassVar[str] = "clips"
    waits: ClassVar[bool] = True
    local_settings: ClassVar[tuple[str, ...]] = ("urls", "token_env", "request_timeout", "retries", "backoff")
    """Settings that say where and when, not what: they are no part of what makes two runs equal."""

    @dataclass
    class Config:
        urls: list[str] = field(default_factory=list)
        """Addresses of the servers, such as `http://127.0.0.1:8000`."""
        reward: str = ""
        """Name of the reward that they must run."""
        version: str = ""
        """Version of the reward that they must run; empty: the same on all of them."""
        settings: dict[str, Any] = field(default_factory=dict)
        """Settings that the reward must have there; what is not named must be the same on all of them."""
        dtype: Literal["uint8", "float16", "float32"] = "uint8"
        """How pixels are sent; uint8 rounds to 256 values, as most rewards do before they look."""
        token_env: str = ""
        """Environment variable that holds the token of the servers; empty: none is sent."""
        request_timeout: float = 60.0
        """Seconds of one attempt for one part of the clips; `timeout` limits the whole call."""
        retries: int = 3
        """Attempts after the first one that failed, each on the least busy server."""
        backoff: float = 0.5
        """Seconds that a server rests after a failure; every further one in a row doubles it, up to a minute."""
        on_failure: Literal["stop", "nan"] = "stop"
        """What follows when all attempts failed: the run stops, or the clips are not scored (NaN)."""

        def __post_init__(self) -> None:
            require(self, "request_timeout", "backoff", above=0)
            require(self, "retries", least=0)
            for url in self.urls:
                if not _is_address(url):
                    raise ValueError(f"urls holds {url!r}: give addresses such as http://127.0.0.1:8000")

    def __init__(self, config: Config) -> None:
        self.config = config
        self._endpoints: Endpoints | None = None
        self._identity = ""
        self._batch = self._max_bytes = 0
        self._warned: set[str] = set()

    @classmethod
    def check(cls, draft: Draft) -> None:
        """Every remote reward of a recipe names its servers and what they run."""
        for label, choice in draft.recipe.rewards.items():
            if choice.name == cls.name and isinstance(choice.config, cls.Config):
                for key, example in EXAMPLES.items():
                    if not getattr(choice.config, key):
                        path = f"rewards.{label}"
                        draft.refuse(f"{path}.{key} is missing", path, fix=f"give {key}: {example}")

    @classmethod
    def preflight(cls, config: Config) -> None:
        """Raises `UserError` when a server does not answer or runs another reward than the recipe pins."""
        cls(config)._connected()

    @without_gradient
    def score(
        self,
        clips: torch.Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] = (),
        fps: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """``[B]`` of clips ``[B, F, 3, H, W]`` in [0, 1] under ``remote``, in float64, and the reward's further names.

        A clip with a value that is not finite gets NaN unsent. fps: frames a second, for rewards that need it. Raises
        `UserError` when a server runs another reward by now, and after all attempts with ``on_failure: stop``.
        """
        endpoints = self._connected()
        rows = clips.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
        parts = list(self._parts(clips, prompts, metadata, rows))
        out = {self.name: torch.full((len(prompts),), torch.nan, dtype=torch.float64)}
        unscored, why = 0, ""

        def work(part: list[int]) -> Any:
            known = [metadata[row] for row in part] if metadata else []
            pixels = _pixels(clips[part], self.config.dtype)
            return endpoints.score(encode(pixels, [str(prompts[n]) for n in part], fps=fps, metadata=known), len(part))

        for part, result in _in_parallel(work, parts, AT_ONCE * len(endpoints.endpoints), self._tell):
            if isinstance(result, AnswerError):
                unscored, why = unscored + len(part), str(result)
                if self.config.on_failure == "stop":
                    raise self._stopped(unscored, len(prompts), why)
                continue
            if isinstance(result, BaseException):
                raise result
            self._keep(out, part, *result)
        self._note("unscored", f"{unscored} of {len(prompts)} clips are not scored: {why}" if unscored else "")
        return out

    def _keep(self, out: dict[str, torch.Tensor], part: list[int], url: str, scores: Any, identity: str) -> None:
        """Put the scores of some clips in their places."""
        if identity != self._identity or self.config.reward not in scores:
            fix = "start it again with what it ran, or begin another run"
            raise UserError("the reward service has been changed during the run", where=url, fix=fix)
        for name, values in scores.items():
            key = self.name if name == self.config.reward else name
            place = out.setdefault(key, torch.full_like(out[self.name], torch.nan))
            numbers = torch.tensor([torch.nan if one is None else one for one in values], dtype=torch.float64)
            place[part] = numbers.where(numbers.isfinite(), torch.nan)
        failed = int(out[self.name][part].isnan().sum())
        if failed:
            self._note(url, f"the reward service {url} could not score {failed} of {len(part)} clips")

    def _note(self, about: str, text: str) -> None:
        """Warn once about something; an empty text forgets it."""
        if text and about not in self._warned:
            warnings.warn(text, UserWarning, stacklevel=3)
        (self._warned.add if text else self._warned.discard)(about)

    def _tell(self) -> None:
        """Show what happened to the servers."""
        for note in self._endpoints.notes() if self._endpoints else ():
            warnings.warn(note, UserWarning, stacklevel=3)

    def _stopped(self, unscored: int, count: int, why: str) -> UserError:
        return UserError(
            f"{unscored} or more of {count} clips could not be scored by {self.config.reward!r}",
            where=", ".join(self.config.urls),
            why=why,
            fix="repair the servers and go on with --resume, or go on without such clips with on_failure: nan",
        )

    def _parts(
        self, clips: torch.Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], rows: Sequence[int]
    ) -> Iterator[list[int]]:
        """Rows of each request: as many clips as a server scores in one call, in as many bytes as it takes."""
        pixels = clips[0].numel() * getattr(torch, self.config.dtype).itemsize if len(clips) else 0
        part: list[int] = []
        size = HEADER
        for row in rows:
            more = pixels + len(json.dumps([str(prompts[row]), dict(metadata[row]) if metadata else {}], default=str))
            if HEADER + more > self._max_bytes:
                raise UserError(
                    f"a clip has {more / 2**20:.2f} MiB, the reward service takes {self._max_bytes / 2**20:.2f}",
                    where=", ".join(self.config.urls),
                    fix="start it with a larger --max-mb, or send uint8",
                )
            if part and (len(part) == self._batch or size + more > self._max_bytes):
                yield part
                part, size = [], HEADER
            part.append(row)
            size += more
        if part:
            yield part

    def _connected(self) -> Endpoints:
        """The servers, which were compared with the recipe before the first request."""
        if self._endpoints is None:
            config = self.config
            for key, example in EXAMPLES.items():
                if not getattr(config, key):
                    raise UserError(f"remote has no {key}", fix=f"give {key}: {example}")
            token = os.environ.get(config.token_env, "") if config.token_env else ""
            if config.token_env and not token:
                raise UserError(f"the environment variable {config.token_env} is not set", where="token_env")
            endpoints = Endpoints(
                config.urls,
                token=token,
                timeout=config.request_timeout,
                retries=config.retries,
                backoff=config.backoff,
            )
            services = {url: _described(endpoints, url) for url in config.urls}
            _compare(config, services)
            self._identity = next(iter(services.values()))["identity"]
            self._batch = min(int(one["batch"]) for one in services.values())
            self._max_bytes = min(int(one["max_bytes"]) for one in services.values())
            self._endpoints = endpoints
        return self._endpoints


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number
        return False


def _described(endpoints: Endpoints, url: str) -> dict[str, Any]:
    """What a server says of itself."""
    try:
        about = endpoints.about(url)
        if not isinstance(about, dict) or not set(about) >= ABOUT:
            raise AnswerError("it does not say which reward it runs")
    except AnswerError as error:
        fix = "start it: vidalign serve --reward NAME"
        raise UserError("the reward service cannot be used", where=url, why=str(error), fix=fix) from error
    return about


def _compare(config: Remote.Config, services: Mapping[str, dict[str, Any]]) -> None:
    """Raises `UserError` where a server runs another reward than the recipe pins, or than the first one."""
    first = next(iter(services))
    for url, about in services.items():
        pinned = {"reward": config.reward} | ({"version": config.version} if config.version else {})
        pinned |= {f"settings.{key}": value for key, value in config.settings.items()}
        if differences := _differences(pinned, about, "the recipe pins"):
            fix = "start it with what the recipe pins, or change the recipe"
            raise UserError(
                "the reward service runs another reward than the recipe pins", where=url, why=differences, fix=fix
            )
        if differences := _differences(_flat(services[first]), about, f"{first} has"):
            what, fix = "the reward services run different rewards", "start them with the same settings"
            raise UserError(what, where=url, why=differences, fix=fix)


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two servers equal."""
    settings = {f"settings.{key}": value for key, value in about["settings"].items()}
    return {"reward": about["name"], "version": about["version"], **settings}


def _differences(expected: Mapping[str, Any], about: Mapping[str, Any], who: str) -> str:
    """Every value of a server that is another, in words."""
    there, found = _flat(about), []
    for key, value in expected.items():
        if key not in there:
            close = nearest(key, there)
            found.append(f"it has no {key}" + (f", but {close}" if close else ""))
        elif there[key] != value:
            found.append(f"{key} is {there[key]!r} there, {who} {value!r}")
    return "; ".join(found)


def _pixels(clips: torch.Tensor, dtype: str) -> Any:
    """Clips in [0, 1] as an array of the type that is sent."""
    clips = clips.detach()
    if dtype == "uint8":
        return clips.float().clamp(0, 1).mul_(255).round_().to(torch.uint8).cpu().numpy()
    return clips.to(getattr(torch, dtype)).cpu().numpy()


def _in_parallel(work: Any, parts: Sequence[list[int]], threads: int, look: Any) -> Iterator[tuple[list[int], Any]]:
    """(part, result or exception) as they are done; look: called while others still work. The threads are daemons: what
    still waits for a server does not keep a process that ends."""
    todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[list[int], Any]] = queue.SimpleQueue()
    for part in parts:
        todo.put(part)
    stopped = threading.Event()

    def run() -> None:
        while not stopped.is_set():
            try:
                part = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((part, work(part)))
            except BaseException as error:
                done.put((part, error))

    for _ in range(min(threads, len(parts))):
        threading.Thread(target=run, name="remote reward", daemon=True).start()
    left = len(parts)
    try:
        while left:
            try:
                result = done.get(timeout=LOOK)
            except queue.Empty:
                look()
                continue
            left -= 1
            look()
            yield result
    finally:
        stopped.set()
