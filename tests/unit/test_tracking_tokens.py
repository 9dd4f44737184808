"""The page of coloured tokens: every token with its regime and gap, safe texts, one file a logged step."""

from __future__ import annotations

import re
from pathlib import Path

from vidalign.tracking.tokens import REGIMES, ColouredResponse, token_page
from vidalign.tracking.tracker import Tracker

RESPONSE = ColouredResponse("1 < 2 ?", "<b>plan</b>", ["yes", " <end>"], ["ht", "ll"], [1.234, -0.5])


def test_every_token_carries_its_regime_and_gap() -> None:
    page = token_page("step 3", [RESPONSE])
    assert '<span class="ht" title="HT +1.23 nats">yes</span>' in page
    assert '<span class="ll" title="LL -0.50 nats"> &lt;end&gt;</span>' in page
    key = re.search(r'<p class="key">(.*?)</p>', page)
    assert key is not None and all(f'<span class="{name}">{row[0]} ' in key[1] for name, row in REGIMES.items())
    assert "HT 50%" in key[1] and "HS 0%" in key[1]


def test_texts_are_escaped_and_nothing_is_fetched() -> None:
    page = token_page("a & b", [RESPONSE])
    assert "1 &lt; 2 ?" in page and "&lt;b&gt;plan&lt;/b&gt;" in page and "<b>plan" not in page
    assert "<title>a &amp; b</title>" in page and "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_a_response_without_privilege_shows_none() -> None:
    assert "<details>" not in token_page("x", [ColouredResponse("p", "", ["a"], ["lh"], [0.0])])


def test_the_tracker_writes_a_page_a_step(tmp_path: Path) -> None:
    with Tracker(tmp_path, {}, total_steps=1, tensorboard=False, panel="none") as tracker:
        tracker.tokens(20, [RESPONSE])
    assert "Routing of response tokens at step 20" in (tmp_path / "tokens" / "step-000020.html").read_text()
    Tracker.silent().tokens(20, [RESPONSE])
