"""A library that waits for its first use is the same library from then on, whoever uses it first and however."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from vidalign.deferred import defer, without_gradient

LIBRARY = {
    "__init__.py": "import time\nfrom .part import value\ntime.sleep(0.05)\nstate = [value]\n"
    "def __getattr__(name):\n    if name == 'late':\n        return 'late'\n    raise AttributeError(name)\n",
    "part.py": "import sys, slowlib\nvalue = 7\nsys.slow_runs = getattr(sys, 'slow_runs', 0) + 1\n",
    "other.py": "from slowlib.part import value\n",
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package `slowlib` that is deferred, imported again as a module would do."""
    (tmp_path / "slowlib").mkdir()
    for name, text in LIBRARY.items():
        (tmp_path / "slowlib" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    defer("slowlib")
    yield __import__("slowlib")
    for name in ("slowlib", "slowlib.part", "slowlib.other"):
        sys.modules.pop(name, None)
    vars(sys).pop("slow_runs", None)


def test_importing_it_runs_nothing_and_using_it_does(library: Any) -> None:
    assert "slowlib.part" not in sys.modules and library.__name__ == "slowlib"
    assert library.state == [7] and library.late == "late" and sys.modules["slowlib"] is library
    assert type(library) is type(sys)
    with pytest.raises(AttributeError):
        library.nothing  # noqa: B018


@pytest.mark.parametrize(
    "use",
    ["from slowlib import state", "import slowlib.part", "from slowlib.part import value", "import slowlib.other as x"],
)
def test_every_way_to_import_a_part_runs_it_once(use: str, library: Any) -> None:
    exec(use, {})
    assert library.state == [7] and vars(sys)["slow_runs"] == 1
    spec = library.part.__spec__
    assert spec.origin == library.part.__file__ and importlib.util.find_spec("slowlib.part") is spec


def test_threads_that_meet_at_its_first_use_all_find_it_whole(library: Any) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(library.state)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[7]] * 8


def test_one_that_cannot_be_run_says_so_at_every_use(library: Any) -> None:
    Path(library.__file__).write_text("raise ImportError('broken')\n")
    for _ in range(2):
        with pytest.raises(ImportError, match="broken"):
            library.state  # noqa: B018


def test_what_is_there_already_or_not_installed_is_left_alone() -> None:
    before = sys.modules["subprocess"]
    defer("subprocess")
    defer("no_such_library")
    assert sys.modules["subprocess"] is before is subprocess and "no_such_library" not in sys.modules


@pytest.mark.parametrize("first", ["import torch", "import torch.distributed.run, torch", "import torch.nn, torch"])
def test_torch_itself_can_wait(first: str) -> None:
    program = f"""
import sys
from vidalign.deferred import defer
defer("torch")
assert "torch.nn" not in sys.modules
{first}
class Layer(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.relu(x)
from torch import Tensor, nn
assert isinstance(Layer()(torch.ones(2)), Tensor) and issubclass(Layer, nn.Module)
import torch.distributed.launcher.api
import pickle
assert pickle.loads(pickle.dumps(torch.float32)) is torch.float32
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_gradient() -> None:
    import torch

    @without_gradient
    def double(x: torch.Tensor) -> torch.Tensor:
        """Twice x."""
        return 2 * x

    assert not double(torch.ones(1, requires_grad=True)).requires_grad and double.__doc__ == "Twice x."
    assert torch.is_grad_enabled()
