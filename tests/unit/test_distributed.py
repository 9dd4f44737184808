"""Which prompt of a step is another's control does not depend on the number of processes."""

from __future__ import annotations

import pytest

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
        places = distributed.places_of_next(len(mine))
        assert [gathered[place] for place in places] == [(number + 1) % 6 for number in mine]


def test_one_prompt_has_no_other() -> None:
    with pytest.raises(UserError, match=r"trainer\.prompts_per_step"):
        distributed.places_of_next(1)
