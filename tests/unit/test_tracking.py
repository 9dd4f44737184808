"""Tracking: what is written is read back by other readers (json, TensorBoard, Pillow, PyAV)."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidalign.errors import UserError
from vidalign.tracking import Health, Tracker, clips, read_history
from vidalign.tracking.jsonl import JsonlLog, read_records
from vidalign.tracking.panel import Mode, Progress, duration, make_panel, sparkline

HEADER = {"recipe_hash": "r1", "commit": "c1", "world_hash": "w1"}
METRICS = {"reward/mean": 0.5, "objective/loss/mean": 0.25, "health/motion": 0.1, "perf/rollout/seconds": 1.5}


def moving_clip(frames: int = 12, side: int = 32) -> torch.Tensor:
    clip = torch.zeros(frames, 3, side, side)
    for frame in range(frames):
        clip[frame, 0, :, frame % side] = 1.0
        clip[frame, 2] = frame / frames
    return clip


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO), "these tests print into memory"
    return console.file.getvalue()


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


# --- metrics.jsonl


def test_first_line_is_the_header_and_history_reads_back(tmp_path: Path) -> None:
    with Tracker(tmp_path, HEADER, total_steps=2, tensorboard=False, panel="none") as tracker:
        tracker.log(1, METRICS)
        tracker.log(2, {"reward/mean": 0.75})
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first == {"kind": "header", "step": 0, **HEADER}
    assert read_history(tmp_path / "metrics.jsonl")["reward/mean"] == [(1, 0.5), (2, 0.75)]


def test_non_finite_numbers_stay_strict_json(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "m.jsonl", HEADER)
    log.metrics(1, {"reward/mean": float("nan"), "health/grad_norm": float("-inf")})
    log.close()

    def refuse(constant: str) -> float:
        raise ValueError(constant)

    for line in (tmp_path / "m.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    history = read_history(tmp_path / "m.jsonl")
    assert np.isnan(history["reward/mean"][0][1])
    assert history["health/grad_norm"] == [(1, float("-inf"))]


def test_resume_supersedes_later_steps_and_drops_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    log = JsonlLog(path, HEADER)
    for step in (1, 2, 3):
        log.metrics(step, {"reward/mean": float(step), "health/motion": 1.0})
    log.close()
    with path.open("a") as file:
        file.write('{"kind": "metrics", "step": 4, "rew')  # killed while writing
    assert len(read_records(path)) == 4
    log = JsonlLog(path, HEADER, start_step=2)
    log.metrics(3, {"reward/mean": 30.0})
    log.close()
    assert read_history(path) == {
        "reward/mean": [(1, 1.0), (2, 2.0), (3, 30.0)],
        "health/motion": [(1, 1.0), (2, 1.0)],
    }


def test_metric_outside_the_groups_is_refused_with_a_fix(tmp_path: Path) -> None:
    quiet = Tracker(tmp_path, HEADER, total_steps=1, tensorboard=False, panel="none")
    with quiet as tracker, pytest.raises(UserError, match="objective/loss"):
        tracker.log(1, {"loss": 1.0})


def test_run_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the metrics"):
        Tracker(tmp_path / "file", HEADER, total_steps=1, tensorboard=False, panel="none")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a Linux device")
def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "metrics.jsonl", HEADER)
    log._file = Path("/dev/full").open("a", encoding="utf-8")
    with pytest.raises(UserError, match="No space left"):
        log.metrics(1, METRICS)


def test_silent_tracker_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Tracker.silent() as tracker:
        with tracker.phase("rollout"):
            tracker.log(1, {"reward/mean": float("nan")})
        tracker.clips(1, "samples", torch.zeros(1, 2, 3, 8, 8), ["x"])
    assert list(tmp_path.iterdir()) == []


# --- TensorBoard


def test_tensorboard_reads_scalars_and_animated_clips(tmp_path: Path) -> None:
    with Tracker(tmp_path, HEADER, total_steps=2, panel="none") as tracker:
        tracker.log(1, METRICS)
        tracker.log(2, {"reward/mean": 0.75})
        tracker.clips(2, "samples", torch.stack([moving_clip(), moving_clip()]), ["red ball\nreward 0.71", "b"])
    found = events(tmp_path / "tensorboard")
    assert [(e.step, e.value) for e in found.Scalars("reward/mean")] == [(1, 0.5), (2, 0.75)]
    assert set(METRICS) <= set(found.Tags()["scalars"])
    assert found.Tags()["images"] == ["samples/0", "samples/1"]
    image = found.Images("samples/0")[0]
    with Image.open(io.BytesIO(image.encoded_image_string)) as gif:
        assert (gif.format, gif.n_frames, gif.size) == ("GIF", 12, (image.width, image.height))
        assert gif.width == 160 and gif.height > 160  # 32 x 5, and the caption under it


def test_tensorboard_forgets_superseded_steps_after_a_resume(tmp_path: Path) -> None:
    for start, value in ((0, 1.0), (1, 2.0)):
        with Tracker(tmp_path / str(start), HEADER, total_steps=3, panel="none", start_step=start) as tracker:
            for step in range(start + 1, 4):
                tracker.log(step, {"reward/mean": value})
    merged = tmp_path / "all"
    merged.mkdir()
    for start in (0, 1):
        source = next((tmp_path / str(start) / "tensorboard").iterdir())
        (merged / f"events.out.tfevents.{start}").write_bytes(source.read_bytes())
    assert [(e.step, e.value) for e in events(merged).Scalars("reward/mean")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 2.0),
    ]


def test_tracking_needs_neither_torch_tensorboard_nor_moviepy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch.utils.tensorboard", "moviepy"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would fail
    with Tracker(tmp_path, HEADER, total_steps=1, panel="none") as tracker:
        tracker.clips(1, "samples", moving_clip()[None], ["x"])
    assert events(tmp_path / "tensorboard").Tags()["images"] == ["samples/0"]


# --- panel


def test_without_a_terminal_the_panel_prints_plain_lines(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=40)
    with Tracker(tmp_path, HEADER, total_steps=3, tensorboard=False, console=console) as tracker:
        with tracker.phase("rollout"):
            pass
        tracker.log(
            1,
            {
                "reward/mean": 0.5,
                "reward/group_std/mean": 0.125,
                "reward/motion/mean": 0.25,
                "reward/motion/group_std": 0.5,
            },
        )
        tracker.warn(Health("name", "something [odd]", "mend it"))
    lines = text_of(console).splitlines()
    assert len(lines) == 1 and "\x1b" not in text_of(console)
    assert lines[0].startswith(
        "step 1/3 | reward 0.500 (group std 0.125) | motion 0.250 (group std 0.500) | rollout 0.0s | left "
    )


def test_a_student_without_rewards_shows_its_loss_and_held_out_score(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=40)
    with Tracker(tmp_path, HEADER, total_steps=3, tensorboard=False, console=console) as tracker:
        tracker.log(1, {"objective/loss/mean": 0.25, "health/held_out/mean": 0.5})
        tracker.log(2, {"objective/loss/mean": 0.125})
    first, second = text_of(console).splitlines()
    assert first.startswith("step 1/3 | loss 0.250 | held out 0.500 | left ")
    assert second.startswith("step 2/3 | loss 0.125 | left ")
    live = make_panel("live", total_steps=3, console=(console := terminal()))
    assert live is not None
    live.update(1, {"objective/loss/mean": 0.25})
    live.close()
    assert "loss" in text_of(console) and "0.250" in text_of(console)


@pytest.mark.parametrize("panel", ["auto", "live", "plain", "none"])
def test_a_warning_is_told_on_standard_error_with_every_panel(
    panel: Mode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(tmp_path, HEADER, total_steps=3, tensorboard=False, panel=panel) as tracker:
        tracker.warn(Health("name", "something [odd]", "mend it"))
        tracker.warn(Health("name", "something [odd]", "mend it"))
    told = capsys.readouterr()
    assert told.err == "warning name: something [odd]. Fix: mend it\n"


def test_live_panel_shows_step_rewards_phases_time_left_and_last_warning() -> None:
    console = terminal()
    panel = make_panel("auto", total_steps=60, console=console)
    assert panel is not None
    panel.update(7, {"reward/mean": 0.5, "reward/group_std/mean": 0.125, "perf/rollout/seconds": 1.5})
    panel.phase("update")
    panel.warn(Health("zero_std_groups", "all the same", "raise group_size [8]"))
    panel.close()
    shown = text_of(console)
    for part in (
        "step 7/60",
        "0.500",
        "0.125",
        "rollout 1.5s",
        "left",
        "zero_std_groups",
        "raise group_size [8]",
    ):
        assert part in shown, part


def test_panel_none_is_none_and_an_unknown_mode_is_refused() -> None:
    assert make_panel("none", 1) is None
    with pytest.raises(AssertionError, match="fancy"):
        make_panel("fancy", 1)  # type: ignore[arg-type]


def test_time_left_is_the_median_step_times_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 4.0, 104.0, 106.0])
    monkeypatch.setattr("vidalign.tracking.panel.time.monotonic", lambda: next(clock))
    progress = Progress(total_steps=10)
    assert progress.remaining() is None
    for step in (1, 2, 3, 4):  # one step of 100 s among steps of 2 s
        progress.update(step, {})
    assert progress.remaining() == pytest.approx(6 * 2.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (41.6, "42s"), (185, "3m 05s"), (3600 * 2 + 600, "2h 10m"), (59.9, "1m 00s")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_sparkline() -> None:
    assert sparkline([0, 7, float("nan"), 3]) == "▁█ ▄"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([float("nan")]) == ""
    long = sparkline([float(i) for i in range(1000)])
    assert len(long) == 24 and long[0] == "▁" and long[-1] == "█"


# --- clips


def test_gif_has_every_frame_and_pixels_survive_the_enlargement(tmp_path: Path) -> None:
    clip = moving_clip()
    with Image.open(clips.write_gif(tmp_path / "sub" / "a.gif", clip, fps=10)) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"], gif.info["duration"]) == (12, (160, 160), 0, 100)
        for index in range(12):
            gif.seek(index)
            small = np.asarray(gif.convert("RGB"))[2::5, 2::5].astype(int)
            expected = (clip[index].permute(1, 2, 0).numpy() * 255).round().astype(int)
            assert np.abs(small - expected).max() <= 2


def test_gif_of_a_frozen_clip_lasts_as_long_as_a_moving_one(tmp_path: Path) -> None:
    with Image.open(clips.write_gif(tmp_path / "a.gif", torch.full((12, 3, 8, 8), 0.5), fps=10)) as gif:
        total = 0
        for index in range(getattr(gif, "n_frames", 1)):
            gif.seek(index)
            total += gif.info["duration"]
    assert total == 1200


def test_burnt_text_lies_under_the_picture_and_is_readable_as_ink() -> None:
    frames = np.full((2, 160, 160, 3), 200, np.uint8)
    short = clips.burn_text(frames, "red")
    long = clips.burn_text(frames, "a large red circle is thrown to the right and falls\nreward 0.71")
    assert (short[:, :160] == frames).all() and (long[:, :160] == frames).all()
    assert long.shape[1] > short.shape[1] > 160  # wrapped text needs a higher band
    assert short[0, 160:].max() > 200 and (short[0, 160:] < 50).mean() > 0.5
    assert (short[0, 160:, 60:] < 50).all()  # three letters reach nowhere near the middle


def test_values_outside_the_range_are_clamped_and_nan_is_black() -> None:
    clip = torch.tensor([-1.0, 0.5, 2.0, float("nan")])[:, None, None, None].expand(4, 3, 2, 2)
    assert clips.to_frames(clip)[:, 0, 0, 0].tolist() == [0, 128, 255, 0]


def test_sprite_places_frames_row_by_row() -> None:
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 4, 3), np.uint8)
    sheet = np.asarray(clips.sprite(frames))
    assert sheet.shape == (4, 12, 3)  # 5 frames of 2x4: 3 columns, 2 rows
    assert sheet[::2, ::4, 0].tolist() == [[0, 1, 2], [3, 4, 0]]


@pytest.mark.skipif(not clips.mp4_encoder(), reason="PyAV with an MP4 encoder is not installed")
def test_mp4_reads_back_with_every_frame(tmp_path: Path) -> None:
    import av

    path = clips.write_clip(tmp_path / "a.mp4", moving_clip(side=31), fps=8)  # odd sides must work
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate or 0) == 8
    assert len(decoded) == 12
    blue = [float(frame[..., 2].mean()) for frame in decoded]
    assert blue == sorted(blue) and blue[-1] - blue[0] > 150


def test_without_an_encoder_a_gif_is_written_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    assert clips.write_clip(tmp_path / "a.mp4", moving_clip()) == tmp_path / "a.gif"
    assert "a.gif instead of" in caplog.text and not (tmp_path / "a.mp4").exists()
    with pytest.raises(UserError, match="pip install av"):
        clips.write_mp4(tmp_path / "a.mp4", moving_clip())


def test_unknown_suffix_and_unwritable_path_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.gif or \.mp4"):
        clips.write_clip(tmp_path / "a.webm", moving_clip())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the clip"):
        clips.write_gif(tmp_path / "file" / "a.gif", moving_clip(2))


@pytest.mark.parametrize(
    ("shape", "expected", "rate"), [((81, 480, 832), (27, 185, 320), 16 / 3), ((12, 32, 32), (12, 160, 160), 16)]
)
def test_what_is_kept_of_a_clip_is_bounded(
    shape: tuple[int, int, int], expected: tuple[int, int, int], rate: float
) -> None:
    """Long and large clips are thinned out and shrunk, and last as long as before."""
    frames, fps = clips.logged(np.zeros((*shape, 3), np.uint8), 16)
    assert frames.shape == (*expected, 3) and fps == rate
