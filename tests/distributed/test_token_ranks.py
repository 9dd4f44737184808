"""Token objectives under ZeRO-3 are those under ZeRO-2, and resume to the bit; every weight is divided."""

from __future__ import annotations

from pathlib import Path

import launch as launcher
import pytest

QUICK = [
    "lm_sft:untied:full",
    "opd:tied:full",
    "opd:untied:every",
    "opd:tied:again",
    "opd:pictures:full",
    "gkd:tied:lora",
    "dopd_ema:tied:full",
    "dopd:untied:lora",
    "opsd_frozen:tied:bf16",
]
SLOW = ["lm_sft:tied:lora", "gkd:untied:full", "opsd_frozen:untied:full", "opsd:tied:lora"]
"""Objectives and heads that the quick ones have, in other pairs."""
JOBS = [*QUICK, *(pytest.param(job, marks=pytest.mark.slow) for job in SLOW)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    tests = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    jobs = list(dict.fromkeys([QUICK[1], *(item.callspec.params["job"] for item in tests)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "WORKER", Path(__file__).with_name("token_worker.py"))
        launcher.launch(2, folder, *(f"{job}:{engine}:straight" for job in jobs for engine in ("zero2", "zero3")))
        launcher.launch(2, folder, *(f"{job}:zero3:resumed" for job in jobs))
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_stage_3_trains_as_stage_2(job: str, folder: Path) -> None:
    """Every metric and every weight; of the tokens world, the bf16 of adapters included. Measured: 1.2e-7."""
    two, three = (launcher.results(folder, f"{job}:{engine}:straight") for engine in ("zero2", "zero3"))
    tolerance = 1e-3 if "bf16" in job else 1e-6
    for step, (expected, found) in enumerate(zip(two["steps"], three["steps"], strict=True)):
        for name, value in expected.items():
            near = pytest.approx(value, rel=10 * tolerance, abs=tolerance, nan_ok=True)
            assert found[name] == near, f"{name} of step {step}"
    assert two["weights"].keys() == three["weights"].keys()
    for name, values in two["weights"].items():
        assert three["weights"][name] == pytest.approx(values, rel=0, abs=tolerance), name
    assert two["steps"][0]["health/grad_norm/mean"] > 1e-3, "there is something to learn"


@pytest.mark.parametrize("job", JOBS)
def test_resume_is_exact(job: str, folder: Path) -> None:
    straight, resumed = (launcher.results(folder, f"{job}:zero3:{way}") for way in ("straight", "resumed"))
    assert resumed["steps"] == straight["steps"][2:]
    assert resumed["weights"] == straight["weights"]


def test_ranks_have_different_numbers_of_tokens(folder: Path) -> None:
    """Otherwise chunks, and the passes of a generation, would not differ between ranks."""
    one, other = (launcher.results(folder, "opd:tied:full:zero3:straight", rank)["tokens"] for rank in (0, 1))
    assert len(one) == 4 and any(a != b for a, b in zip(one, other, strict=True)), (one, other)
