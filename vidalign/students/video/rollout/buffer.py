"""Groups of candidates forked at a pivot chunk, and a folder that keeps them (semi-on-policy AR-CoPO, 2603.17461).

    BUFFER/buffer.json                 what made it: hashes of student and recipe, the settings that shape a group
           group-000012.safetensors    one group: latents before the pivot, noise, predictions, scores

A group holds latents, never caches: keys and values are rebuilt by clean passes. The states that the sampler saw are
not kept either, as `ForkedGroups.states` makes them again from noise and predictions, bit for bit. Files are written
beside and renamed; collecting again fills the gaps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from vidalign.errors import DataError
from vidalign.losses.flow_matching import add_noise
from vidalign.owner import replacing
from vidalign.provenance import weights_hash
from vidalign.reading import check_object, read_json
from vidalign.tensor_header import read_header
from vidalign.tensor_writing import save_tensors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
HEADER = "buffer.json"
MOST_GROUPS = 999_999
AGAIN = "delete the file and run `vidalign collect` again: it fills the gap"


@dataclass
class ForkedGroups:
    """P prompts with G candidates each, forked at one chunk; f frames a chunk, T steps."""

    prompts: list[str]
    pivot: int
    """The chunk at which the candidates part, counted from 0."""
    history: Tensor
    """Clean latents of the chunks before it, ``[P, pivot * f, C, H, W]``."""
    initial: Tensor
    """Initial noise of the pivot, ``[P, G, f, C, H, W]``."""
    renoise: Tensor
    """Its later draws, ``[P, G or 1, T - 1, f, C, H, W]``: the candidates' own, or shared by them."""
    x0: Tensor
    """What the rollout predicted for the pivot at every step, ``[P, G, T, f, C, H, W]``."""
    rewards: dict[str, Tensor]
    """Scores of the finished videos by reward, ``[P, G]``; NaN where one failed. Empty before the judgement."""

    def judged(self, scores: dict[str, Tensor]) -> ForkedGroups:
        """With the scores ``[P * G]`` of the finished videos by reward."""
        shape = (len(self.prompts), -1)
        return replace(self, rewards={name: value.unflatten(0, shape) for name, value in scores.items()})

    def states(self, sigmas: Sequence[float]) -> Tensor:
        """What the sampler saw at its T levels `sigmas`, like `x0`."""
        assert len(sigmas) == self.x0.shape[2], "one level a step"
        seen = [self.initial]
        for step, sigma in enumerate(sigmas[1:]):
            seen.append(add_noise(self.x0[:, :, step], self.renoise[:, :, step], sigma))
        return torch.stack(seen, 2)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, the first dimension counting prompts."""
        own = {name: getattr(self, name) for name in ("history", "initial", "renoise", "x0")}
        return own | {f"rewards.{name}": value for name, value in self.rewards.items()}

    @classmethod
    def from_tensors(cls, prompts: list[str], pivot: int, tensors: dict[str, Tensor]) -> ForkedGroups:
        """Inverse of `tensors`."""
        rewards = {k.removeprefix("rewards."): v for k, v in tensors.items() if k.startswith("rewards.")}
        rest = {k: v for k, v in tensors.items() if not k.startswith("rewards.")}
        return cls(prompts, pivot, rewards=rewards, **rest)

    def rows(self, index: Sequence[int]) -> ForkedGroups:
        """The groups of some prompts."""
        tensors = {name: value[list(index)] for name, value in self.tensors().items()}
        return self.from_tensors([self.prompts[i] for i in index], self.pivot, tensors)

    def to(self, device: torch.device) -> ForkedGroups:
        tensors = {name: value.to(device) for name, value in self.tensors().items()}
        return self.from_tensors(self.prompts, self.pivot, tensors)


@dataclass(frozen=True)
class BufferHeader:
    """What made a buffer."""

    student: str
    """Hash of the weights that rolled out (`vidalign.provenance.weights_hash`)."""
    recipe: str
    """Hash of the recipe that collected it."""
    groups: int
    """Groups that a whole buffer holds."""
    settings: dict[str, Any]
    """What shapes a group; training with other values is refused."""


class Buffer:
    """The groups in a folder."""

    def __init__(self, folder: Path, header: BufferHeader) -> None:
        self.folder = folder
        self.header = header
        self._pivots: dict[int, int] = {}

    @classmethod
    def create(cls, folder: str | Path, header: BufferHeader) -> Buffer:
        """A new buffer, or one to go on with; `DataError` when the folder holds a buffer of another origin."""
        folder = Path(folder)
        if (folder / HEADER).is_file():
            buffer = cls.open(folder, whole=False)
            buffer.check(student=header.student, settings=header.settings)
            if buffer.header.recipe != header.recipe:
                raise DataError(
                    "the buffer was begun with another recipe",
                    where=str(folder / HEADER),
                    why=f"recipe hash {buffer.header.recipe} there, {header.recipe} here",
                    fix="go on with the same recipe and overrides, or name another folder",
                )
            buffer.header = replace(header, groups=max(header.groups, buffer.header.groups))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            buffer = cls(folder, header)
        with replacing(folder / HEADER) as partial:
            partial.write_text(json.dumps({"format": FORMAT, **asdict(buffer.header)}, indent=1), encoding="utf-8")
        return buffer

    @classmethod
    def open(cls, folder: str | Path, *, whole: bool = True) -> Buffer:
        """A buffer on disk; `DataError` when there is none, it is damaged or, if `whole`, groups are missing."""
        folder = Path(folder)
        where = str(folder / HEADER)
        collect = "make one with `vidalign collect RECIPE --out BUFFER`"
        try:
            kinds = {"format": int, "student": str, "recipe": str, "groups": int, "settings": dict}
            values = check_object(read_json(folder / HEADER), kinds)
            if not 1 <= values["groups"] <= MOST_GROUPS:
                raise ValueError(f"'groups' must lie in 1..{MOST_GROUPS}, not {values['groups']}")
            version = values.pop("format")
            header = BufferHeader(**values)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} holds no buffer", where=where, why="there is no such file", fix=collect
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise DataError("the buffer's header is damaged", where=where, why=str(error), fix=collect) from error
        if version != FORMAT:
            raise DataError(f"the buffer has format {version}, this version reads {FORMAT}", where=where, fix=collect)
        buffer = cls(folder, header)
        missing = buffer.missing() if whole else []
        if missing:
            raise DataError(
                f"the buffer is not whole: {len(missing)} of {header.groups} groups are missing, the first is "
                f"{missing[0]}",
                where=str(folder),
                fix="run the same `vidalign collect` again: it fills the gaps",
            )
        return buffer

    def check(self, *, student: str, settings: dict[str, Any]) -> None:
        """`DataError` naming what differs when the buffer comes from another student or from other settings."""
        here, there = settings, self.header.settings
        wrong = [
            f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
            for name in sorted({*here, *there})
            if there.get(name) != here.get(name)
        ]
        if self.header.student != student:
            wrong.insert(0, f"its groups come from student {self.header.student}, this run begins with {student}")
        if wrong:
            raise DataError(
                "the buffer does not fit this run",
                where=str(self.folder / HEADER),
                why="; ".join(wrong),
                fix="collect a new buffer, or use the student and settings of this one",
            )

    def path(self, group: int) -> Path:
        return self.folder / f"group-{group:06d}.safetensors"

    def missing(self) -> list[int]:
        """Numbers of the groups that are not there."""
        return [n for n in range(self.header.groups) if not self.path(n).is_file()]

    def write(self, numbers: Sequence[int], groups: ForkedGroups, cost: Mapping[str, float]) -> None:
        """Add groups under their numbers, one file each; `DataError` when the disk refuses.

        cost: what each of them took, such as ``forwards`` and ``seconds``; kept as the files' metadata ``cost``.
        """
        for row, number in enumerate(numbers):
            one = groups.rows([row])
            tensors = {name: value.detach().cpu().contiguous() for name, value in one.tensors().items()}
            labels = {"prompt": one.prompts[0], "pivot": str(one.pivot), "hash": weights_hash(tensors)}
            labels["cost"] = json.dumps(dict(cost))
            path = self.path(number)
            try:
                with replacing(path) as partial:
                    save_tensors(tensors, partial, metadata=labels)
            except (OSError, SafetensorError) as error:
                fix = "free space and run the same command again: it goes on from here"
                raise DataError("a group could not be saved", where=str(path), why=str(error), fix=fix) from error

    def read(self, numbers: Sequence[int]) -> ForkedGroups:
        """Groups of one pivot, on the CPU; `DataError` naming a file that is damaged."""
        groups = [self._read(n) for n in numbers]
        assert len({one.pivot for one in groups}) == 1, "groups read together fork at the same chunk"
        tensors = {name: torch.cat([one.tensors()[name] for one in groups]) for name in groups[0].tensors()}
        return ForkedGroups.from_tensors([one.prompts[0] for one in groups], groups[0].pivot, tensors)

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """`count` distinct groups that fork at the same chunk; a pivot comes up as often as it has groups."""
        pivots = self.pivots()
        least, held = min(Counter(pivots.values()).items(), key=lambda item: item[1])
        if held < count:
            raise DataError(
                f"the buffer has only {held} groups that fork at chunk {least}, a step wants {count}",
                where=str(self.folder),
                why="the groups of a step share their pivot",
                fix="lower trainer.prompts_per_step, or collect more groups",
            )
        order = torch.randperm(len(pivots), generator=generator).tolist()
        return [n for n in order if pivots[n] == pivots[order[0]]][:count]

    def pivots(self) -> dict[int, int]:
        """The pivot of every group."""
        for n in range(self.header.groups):
            if n not in self._pivots:
                self._pivots[n] = int(self._labels(n)["pivot"])
        return self._pivots

    def _labels(self, number: int) -> dict[str, str]:
        path = self.path(number)
        try:
            labels = dict(read_header(path).metadata)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, str(error)) from error
        if not {"prompt", "pivot", "hash"} <= labels.keys() or not labels["pivot"].isdigit():
            raise _damaged(path, "its metadata lacks prompt, pivot or hash")
        return labels

    def _read(self, number: int) -> ForkedGroups:
        path, labels = self.path(number), self._labels(number)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if {name for name in tensors if not name.startswith("rewards.")} != {"history", "initial", "renoise", "x0"}:
            raise _damaged(path, "its tensors are not those of a group")
        if weights_hash(tensors) != labels["hash"]:
            raise _damaged(path, "its contents are not those that were written")
        return ForkedGroups.from_tensors([labels["prompt"]], int(labels["pivot"]), tensors)


def _damaged(path: Path, why: str) -> DataError:
    return DataError("a group of the buffer is damaged", where=str(path), why=why, fix=AGAIN)
