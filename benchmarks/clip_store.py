"""Time and memory of the first clip of a store that holds one long video.

    python benchmarks/clip_store.py

A video of `--seconds` at 1280 x 720 and 24 frames a second, and a student of 12 frames of 64 x 64 at 12 a second, which
needs its first second. Two processes are compared: ``store`` opens a `ClipStore` and draws a clip; ``whole`` decodes
and stacks every frame first, as a simple loader does. Each row has seconds and the peak resident memory of the process,
imports left out of the seconds. Writes them with command, seed, commit and machine to
`benchmarks/results/clip_store.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vidalign.provenance import commit, machine

RESULT = Path(__file__).parent / "results" / "clip_store.json"
HEIGHT, WIDTH, RATE = 720, 1280, 24


def write_video(path: Path, seconds: int) -> None:
    """Moving noise, so that no frame is like the one before."""
    import av
    import numpy as np

    numbers = np.random.default_rng(0)
    picture = numbers.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("h264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for n in range(seconds * RATE):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 4 * n, 1), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def store(folder: Path) -> None:
    """The clip as training draws it."""
    import torch

    from vidalign.teachers.clips import ClipShape
    from vidalign.teachers.store import ClipStore

    made = ClipStore(folder, ClipShape(12, 64, 64), fps=12.0)
    clip = made.clips(made.prompts, [torch.Generator().manual_seed(0)])
    assert clip.shape == (1, 12, 3, 64, 64)


def whole(folder: Path) -> None:
    """All frames, then the ones that are needed."""
    import av
    import numpy as np

    with av.open(str(next(folder.glob("*.mp4")))) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    assert len(frames[:: RATE // 12][:12]) == 12


def measured(way: str, folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of a process that goes one way."""
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, str(folder)], capture_output=True, text=True, check=True
    )
    return {"way": way, **json.loads(done.stdout)}


def one(way: str, folder: Path) -> None:
    """In a process of its own: print what it took."""
    import av  # noqa: F401
    import torch  # noqa: F401

    import vidalign.teachers.store  # noqa: F401

    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    {"store": store, "whole": whole}[way](folder)
    seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": round(seconds, 3), "above_imports_mib": (peak - before) // 1024}))


def main() -> None:
    """Make the video, measure both ways and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FOLDER"), help="measure one way, in this process")
    asked = parser.parse_args()
    if asked.way:
        one(asked.way[0], Path(asked.way[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        write_video(Path(name) / "a moving picture.mp4", asked.seconds)
        rows = [measured(way, Path(name)) for way in ("store", "whole")]
    document = {
        "command": f"python benchmarks/clip_store.py --seconds {asked.seconds}",
        "seed": 0,
        "commit": commit(),
        "machine": machine(),
        "seconds": asked.seconds,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
