"""Plugins by kind and name: a static table of built-ins, entry points, and files given with --plugin.

Nothing is imported before it is used: built-ins are "module:attribute" strings, entry points (groups
`vidalign.objectives`, `vidalign.rewards`, ...) are read from the metadata of installed distributions. A plugin that
cannot be imported is reported with its distribution, target and cause, and only when that very name is used. A built-in
name cannot be taken by a plugin.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from vidalign.errors import PluginError, UsageError, UserError, nearest

KINDS = (
    "objectives",
    "students",
    "teachers",
    "rewards",
    "discriminators",
    "metrics",
    "prompts",
    "graders",
    "codecs",
    "text_encoders",
    "trackers",
    "callbacks",
)

_BUILTIN: dict[str, dict[str, str]] = {
    "objectives": {
        "afd": "vidalign.objectives.afd:AFD",
        "ar_copo": "vidalign.objectives.ar_copo:ARCoPO",
        "astrolabe": "vidalign.objectives.astrolabe:Astrolabe",
        "diffusion_nft": "vidalign.objectives.baselines.diffusion_nft:DiffusionNFT",
        "dmd": "vidalign.objectives.baselines.dmd:DMD",
        "dopd": "vidalign.objectives.dopd:DOPD",
        "dopd_video": "vidalign.objectives.experimental.dopd_video:DOPDVideo",
        "flow_grpo": "vidalign.objectives.baselines.flow_grpo:FlowGRPO",
        "gan": "vidalign.objectives.baselines.gan:GAN",
        "gkd": "vidalign.objectives.baselines.gkd:GKD",
        "lm_sft": "vidalign.objectives.baselines.lm_sft:LanguageSFT",
        "opd": "vidalign.objectives.baselines.opd:OPD",
        "opsd": "vidalign.objectives.baselines.opsd:OPSD",
        "sft": "vidalign.objectives.baselines.sft:SFT",
    },
    "students": {
        "language": "vidalign.students.language_kind:Language",
        "video": "vidalign.students.video.kind:Video",
    },
    "teachers": {
        "endpoint": "vidalign.teachers.endpoint:EndpointTeacher",
        "events": "vidalign.worlds.events.teacher:EventTeacher",
        "few_step": "vidalign.teachers.few_step:FewStepTeacher",
        "language": "vidalign.teachers.language:LanguageTeacher",
        "model": "vidalign.teachers.model:ModelTeacher",
        "pipeline": "vidalign.teachers.pipeline:PipelineTeacher",
        "store": "vidalign.teachers.store:ClipStore",
        "world": "vidalign.worlds.video.teacher:WorldTeacher",
    },
    "rewards": {
        "aesthetic": "vidalign.rewards.aesthetic:Aesthetic",
        "caption_content": "vidalign.worlds.video.proxies:CaptionContent",
        "clip_score": "vidalign.rewards.clip_score:ClipScoreReward",
        "discriminator": "vidalign.rewards.discriminator:DiscriminatorReward",
        "event_alignment": "vidalign.worlds.events.rewards:EventAlignment",
        "event_motion": "vidalign.worlds.events.rewards:EventMotion",
        "event_visual": "vidalign.worlds.events.rewards:EventVisual",
        "exact_match": "vidalign.rewards.exact_match:ExactMatch",
        "frame_quality": "vidalign.worlds.video.proxies:FrameQuality",
        "hps_v3": "vidalign.rewards.hps_v3:HPSv3Reward",
        "motion": "vidalign.rewards.motion:MotionReward",
        "motion_quality": "vidalign.worlds.video.rewards:MotionQuality",
        "pick_score": "vidalign.rewards.pick_score:PickScore",
        "remote": "vidalign.rewards.remote:Remote",
        "smooth_motion": "vidalign.worlds.video.proxies:SmoothMotion",
        "text_alignment": "vidalign.worlds.video.rewards:TextAlignment",
        "video_align": "vidalign.rewards.video_align:VideoAlignReward",
        "visual_quality": "vidalign.worlds.video.rewards:VisualQuality",
        "vlm_judge": "vidalign.rewards.vlm_judge:VLMJudge",
    },
    "discriminators": {
        "spatiotemporal": "vidalign.rewards.discriminators.kinds:SpatioTemporalKind",
        "vision_language": "vidalign.rewards.discriminators.kinds:VisionLanguageKind",
    },
    "metrics": {
        "aesthetic": "vidalign.evaluation.metrics.of_rewards:Aesthetic",
        "clip_score": "vidalign.evaluation.metrics.of_rewards:ClipScore",
        "diversity": "vidalign.worlds.video.metrics:Diversity",
        "drift": "vidalign.worlds.video.metrics:Drift",
        "event_amount": "vidalign.worlds.events.metrics:EventAmount",
        "event_auditor": "vidalign.worlds.events.metrics:EventAuditor",
        "event_diversity": "vidalign.worlds.events.metrics:EventDiversity",
        "event_drift": "vidalign.worlds.events.metrics:EventDrift",
        "event_quarters": "vidalign.worlds.events.metrics:EventQuarters",
        "event_scorer": "vidalign.worlds.events.metrics:EventScorer",
        "exact_match": "vidalign.evaluation.metrics.exact_match:ExactMatch",
        "flow_motion": "vidalign.evaluation.metrics.of_rewards:Motion",
        "hps_v3": "vidalign.evaluation.metrics.of_rewards:HPSv3",
        "motion": "vidalign.worlds.video.metrics:Motion",
        "pick_score": "vidalign.evaluation.metrics.of_rewards:PickScore",
        "quarters": "vidalign.worlds.video.metrics:Quarters",
        "remote": "vidalign.evaluation.metrics.remote:RemoteMetric",
        "video_align": "vidalign.evaluation.metrics.of_rewards:VideoAlign",
        "vlm_judge": "vidalign.evaluation.metrics.of_rewards:Judge",
        "world_auditor": "vidalign.worlds.video.metrics:WorldAuditor",
        "world_scorer": "vidalign.worlds.video.metrics:WorldScorer",
    },
    "prompts": {
        "caption_table": "vidalign.data.captions:TableCaptions",
        "datasets": "vidalign.data.tables:HubTable",
        "events": "vidalign.worlds.events.prompts:EventCaptions",
        "pictures": "vidalign.worlds.language.prompts:Pictures",
        "rules": "vidalign.worlds.language.prompts:Rules",
        "signs": "vidalign.worlds.language.prompts:Signs",
        "table": "vidalign.data.tables:TableExamples",
        "text": "vidalign.data.prompts:TextFile",
        "tokens": "vidalign.worlds.language.prompts:Tokens",
        "world": "vidalign.worlds.video.prompts:Captions",
    },
    "graders": {
        "after_equals": "vidalign.worlds.language.grader:AfterEquals",
        "boxed": "vidalign.data.graders:Boxed",
        "equals": "vidalign.data.graders:Equals",
        "last_number": "vidalign.data.graders:LastNumber",
        "math": "vidalign.data.graders:Math",
        "multiple_choice": "vidalign.data.graders:MultipleChoice",
        "regex": "vidalign.data.graders:Regex",
    },
    "codecs": {
        "frames": "vidalign.codecs.autoencoder:FrameCodec",
        "rgb": "vidalign.codecs.rgb:RGBCodec",
        "wan": "vidalign.codecs.autoencoder:WanCodec",
    },
    "text_encoders": {
        "events": "vidalign.worlds.events.text:EventText",
        "transformers": "vidalign.text.pretrained:PretrainedText",
        "world": "vidalign.worlds.video.text:WorldText",
    },
    "trackers": {
        "jsonl": "vidalign.tracking.jsonl:JsonlTracker",
        "panel": "vidalign.tracking.panel:PanelTracker",
        "tensorboard": "vidalign.tracking.tensorboard:TensorBoardTracker",
        "wandb": "vidalign.tracking.weights_and_biases:WandbTracker",
    },
    "callbacks": {
        "early_stop": "vidalign.callbacks:EarlyStop",
    },
}
ASKED = {
    "objectives": ("needs", "Config"),
    "students": ("spec_type", "network", "build", "recognises"),
    "teachers": ("offers", "Config", "from_recipe"),
    "discriminators": ("Config", "from_recipe"),
    "metrics": ("name", "version", "judges", "Config"),
    "graders": ("Config", "can_grade", "grade"),
    "trackers": ("Config", "start"),
    "callbacks": ("Config", "on_start"),
}
"""What the class of a plugin must have: checked before one is made."""
MODULE = "vidalign_plugin_"
"""How the modules of plugin files are called."""
PAGES = {kind: "docs/guides.md" for kind in KINDS} | {
    "objectives": "docs/adding_an_objective.md",
    "students": "docs/adding_a_student.md",
    "teachers": "docs/adding_a_teacher.md",
    "rewards": "docs/adding_a_reward.md",
    "metrics": "docs/adding_a_metric.md",
    "prompts": "docs/adding_a_prompt_source.md",
    "graders": "docs/adding_a_grader.md",
    "trackers": "docs/callbacks.md",
    "callbacks": "docs/callbacks.md",
}
"""The page that says how to add a plugin of a kind."""
_registered: dict[str, dict[str, tuple[Any, str]]] = {kind: {} for kind in KINDS}

T = TypeVar("T")


def get(kind: str, name: str) -> Any:
    """The class or callable registered as `name`, imported now.

    Raises UsageError for an unknown name (with the nearest one) and PluginError when its import fails.
    """
    assert kind in KINDS, f"{kind!r} is no kind of plugin; the kinds are {KINDS}"
    if name in _BUILTIN[kind]:
        return _load(kind, EntryPoint(name, _BUILTIN[kind][name], f"vidalign.{kind}"), "vidalign")
    if name in _registered[kind]:
        return _complete(kind, name, *_registered[kind][name])
    points = [point for point in _entry_points(kind) if point.name == name]
    if len(points) > 1:
        owners = ", ".join(_owner(point) for point in points)
        raise PluginError(
            f"two installed packages offer {name!r} among {kind}", where=owners, fix="uninstall one of them"
        )
    if points:
        return _complete(kind, name, _load(kind, points[0], _owner(points[0])), _owner(points[0]))
    known = names(kind)
    close = nearest(name, known)
    listed = f"known: {', '.join(sorted(known)) or 'none'}"
    own = f"one of your own needs --plugin FILE, see {PAGES[kind]}"
    fix = f"did you mean {close!r}?" if close else f"{listed}; {own}"
    raise UsageError(f"{name!r} is not among the {kind}", fix=fix)


def names(kind: str) -> dict[str, str]:
    """Every name of this kind and where it comes from: "vidalign", a distribution, or a file."""
    assert kind in KINDS, f"{kind!r} is no kind of plugin; the kinds are {KINDS}"
    sources = {point.name: _owner(point) for point in _entry_points(kind)}
    sources |= {name: source for name, (_, source) in _registered[kind].items()}
    sources |= dict.fromkeys(_BUILTIN[kind], "vidalign")
    return dict(sorted(sources.items()))


def target(kind: str, name: str) -> str:
    """``module:attribute`` of a plugin, which is not imported; '' for one that does not exist."""
    assert kind in KINDS, f"{kind!r} is no kind of plugin; the kinds are {KINDS}"
    if name in _BUILTIN[kind]:
        return _BUILTIN[kind][name]
    if name in _registered[kind]:
        plugin = _registered[kind][name][0]
        return f"{getattr(plugin, '__module__', '')}:{getattr(plugin, '__qualname__', '')}"
    return next((point.value for point in _entry_points(kind) if point.name == name), "")


def register(kind: str, name: str) -> Callable[[T], T]:
    """Decorator that makes a class available as `name`, for a file given with --plugin or for a notebook."""
    assert kind in KINDS, f"{kind!r} is no kind of plugin; the kinds are {KINDS}"

    def keep(plugin: T) -> T:
        module = sys.modules.get(getattr(plugin, "__module__", ""))
        source = getattr(module, "__file__", None) or "a definition outside any file"
        taken_by = names(kind).get(name, source)
        if taken_by != source:
            raise PluginError(
                f"the name {name!r} among {kind} is taken",
                where=source,
                why=f"it belongs to {taken_by}",
                fix="rename it",
            )
        _registered[kind][name] = (plugin, source)
        return plugin

    return keep


def unregister(kind: str, name: str) -> None:
    """Take back what `register` made available as `name`."""
    del _registered[kind][name]


def load_plugin_file(path: str | Path) -> None:
    """Run one Python file for its `@register(...)` lines. Loading the same file again does nothing."""
    file = Path(path).resolve()
    if not file.is_file():
        raise PluginError(f"no plugin file {str(path)!r}", fix="give the path of a Python file")
    module_name = MODULE + hashlib.sha256(str(file).encode()).hexdigest()[:12]
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"{str(path)!r} is not a Python file", fix="give a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and inspect look the module up by name
    try:
        spec.loader.exec_module(module)
    except UserError:
        del sys.modules[module_name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        line = next(
            (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(file)),
            0,
        )
        raise PluginError(
            f"the plugin file {file.name} cannot be run",
            where=f"{path}:{line}",
            why=f"{type(error).__name__}: {error}",
        ) from error


def plugin_files() -> list[str]:
    """The files given with --plugin whose plugins are registered."""
    owners = {source for taken in _registered.values() for _, source in taken.values()}
    modules = [(name, getattr(module, "__file__", "")) for name, module in sys.modules.items()]
    return sorted(str(file) for name, file in modules if name.startswith(MODULE) and file in owners)


def _complete(kind: str, name: str, plugin: Any, owner: str) -> Any:
    """A third party's plugin; `PluginError` when its class lacks what its kind has."""
    missing = [attribute for attribute in ASKED.get(kind, ()) if not hasattr(plugin, attribute)]
    if missing:
        raise PluginError(
            f"{name!r} among {kind} has no {', '.join(missing)}",
            where=owner,
            why=f"every one of the {kind} has {', '.join(ASKED[kind])}",
            fix="repair the plugin, or report it to its authors",
        )
    return plugin


def _entry_points(kind: str) -> list[EntryPoint]:
    places = [place or "." for place in sys.path]
    changed = tuple((place, os.stat(place).st_mtime_ns if os.path.exists(place) else 0) for place in places)
    return _installed(changed)[kind]


@lru_cache(maxsize=1)
def _installed(changed: tuple[tuple[str, int], ...]) -> dict[str, list[EntryPoint]]:
    """What all distributions offer by kind. Reading them takes 10 ms, and checking one recipe asks fifty times.

    changed: the places of the search path, and when something was last installed in each."""
    found = entry_points()
    return {kind: list(found.select(group=f"vidalign.{kind}")) for kind in KINDS}


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unnamed distribution"


def _load(kind: str, point: EntryPoint, owner: str) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{point.name!r} among {kind} cannot be imported",
            where=f"{owner}: {point.value}",
            why=f"{type(error).__name__}: {error}",
            fix=f"reinstall {owner}, or report it to its authors",
        ) from error
