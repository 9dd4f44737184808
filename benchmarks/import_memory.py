"""Peak resident memory of `vidalign import` on a checkpoint of several GB with random weights of Wan2.1's sizes.

    python benchmarks/import_memory.py --gigabytes 4 --form pt

Prints one JSON line: bytes of the file, of the largest tensor, and the peak of the process that imported it. Needs
about twice the file's size on disk, below --folder, and its size in memory to make it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from vidalign.students.video.importers.names import original

WIDE = {"num_attention_heads": 40, "ffn_dim": 13824}
"""The widths of the 14B network, which has the largest tensors."""


def make(folder: Path, form: str, gigabytes: float) -> tuple[Path, int]:
    """A checkpoint of about that size in fp32, and the bytes of its largest tensor."""
    layers = 1
    while _size(layers) < gigabytes * 1e9:
        layers += 1
    with torch.device("meta"):
        shapes = {
            original(k): v.shape for k, v in WanTransformer3DModel(**WIDE, num_layers=layers).state_dict().items()
        }
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    path = folder / ("checkpoint.safetensors" if form == "safetensors" else "checkpoint.pt")
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"generator_ema": weights}, path, _use_new_zipfile_serialization=form == "pt")
    return path, max(value.nbytes for value in weights.values())


def _size(layers: int) -> int:
    with torch.device("meta"):
        return sum(p.nbytes for p in WanTransformer3DModel(**WIDE, num_layers=layers).state_dict().values())


def main() -> None:
    """Make the checkpoint, import it and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--form", choices=["pt", "safetensors", "legacy"], default="pt")
    parser.add_argument("--folder", default=None, help="where the files go; default the system's temporary folder")
    parser.add_argument("--import-options", nargs="*", default=[], help="further options of the command")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        pid = os.fork()  # what makes the file does not count
        if pid == 0:
            path, largest = make(Path(name), asked.form, asked.gigabytes)
            (Path(name) / "made.json").write_text(json.dumps([str(path), largest]))
            os._exit(0)
        os.waitpid(pid, 0)
        path, largest = json.loads((Path(name) / "made.json").read_text())
        out, started = str(Path(name) / "out"), time.perf_counter()
        command = ["import", "self_forcing", "--checkpoint", path, "--out", out, *asked.import_options]
        script = "from vidalign import cli; cli.main(sys.argv[1:])"
        ask = "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr)"
        code = f"import atexit, sys\natexit.register(lambda: {ask})\n{script}"
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
        peak = int(done.stderr.strip().splitlines()[-1]) * 1024
        seconds, size = time.perf_counter() - started, Path(path).stat().st_size
    result = {"form": asked.form, "file": size, "largest_tensor": largest, "peak": peak, "seconds": round(seconds, 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
