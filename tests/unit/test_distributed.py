"""What every process must agree on, and what each finds out for its own device."""

from __future__ import annotations

import pytest
import torch

from vidalign.engine import distributed
from vidalign.errors import UserError


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_the_next_prompt_is_the_same_on_any_number_of_ranks(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts 0..5, dealt out in turn; each finds the next in the concatenation of all ranks' prompts."""
    dealt = [list(range(rank, 6, ranks)) for rank in range(ranks)]
    gathered = [number for part in dealt for number in part]
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    for rank, mine in enumerate(dealt):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        places = distributed.next_prompt_index(len(mine))
        assert [gathered[place] for place in places] == [(number + 1) % 6 for number in mine]


def test_one_prompt_has_no_other() -> None:
    with pytest.raises(UserError, match=r"trainer\.prompts_per_step"):
        distributed.next_prompt_index(1)


@pytest.mark.parametrize(
    ("avx", "amx", "expected"), [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")]
)
def test_automatic_precision_is_bf16_only_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert distributed.resolve_precision("auto") == expected
    assert [distributed.resolve_precision(name) for name in ("fp32", "bf16", "fp64")] == ["fp32", "bf16", "fp64"]
