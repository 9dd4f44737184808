"""Sampled responses as a page of coloured tokens: one colour a regime of the routing, one file a logged step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

REGIMES = {
    "lh": ("LH", "low gap, sure", "#cfe8cf", "#1f4d2b"),
    "ll": ("LL", "low gap, unsure", "#e6e6e6", "#43474d"),
    "ht": ("HT", "the teacher knows more", "#ffd9a8", "#7a4200"),
    "hs": ("HS", "the student knows more", "#cfdcff", "#22397a"),
}
"""Label, meaning, colour on a light page and on a dark one, by name."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 15px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 56rem; padding: 0 1rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.9 ui-monospace, monospace; }}
details {{ color: GrayText; }}
pre span, .key span {{ padding: 1px 2px; border-radius: 3px; }}
sup {{ font-size: 0.65em; opacity: 0.75; }}
.key span {{ margin-right: 0.8rem; padding: 2px 6px; }}
{colours}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="key">{key}</p>
{responses}
</body>
</html>
"""


@dataclass(frozen=True)
class ColouredResponse:
    """One response: its tokens as text with the regime (`lh`, `ll`, `ht`, `hs`) and gap in nats of each."""

    prompt: str
    privileged: str
    tokens: Sequence[str]
    regimes: Sequence[str]
    gaps: Sequence[float]
    """Signed: above 0 the teacher is surer of the token."""


def token_page(title: str, responses: Sequence[ColouredResponse]) -> str:
    """A page that stands alone: no scripts, nothing from the network; all texts are escaped."""
    counts = Counter(name for response in responses for name in response.regimes)
    total = max(1, sum(counts.values()))
    key = Markup("").join(
        Markup('<span class="{}">{} {:.0%}: {}</span>').format(name, label, counts[name] / total, meaning)
        for name, (label, meaning, _, _) in REGIMES.items()
    )
    light = "\n".join(f".{name} {{ background: {row[2]}; color: #111; }}" for name, row in REGIMES.items())
    dark = "\n".join(f".{name} {{ background: {row[3]}; color: #eee; }}" for name, row in REGIMES.items())
    colours = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
    sections = Markup("\n").join(_section(response) for response in responses)
    return PAGE.format(title=escape(title), colours=colours, key=key, responses=sections)


def write_token_page(folder: Path, step: int, responses: Sequence[ColouredResponse]) -> Path:
    """Write ``tokens/step-000020.html`` below the run's `folder`; returns the file."""
    file = folder / "tokens" / f"step-{step:06d}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(token_page(f"Routing of response tokens at step {step}", responses), encoding="utf-8")
    return file


def _section(response: ColouredResponse) -> Markup:
    words = Markup("").join(
        Markup('<span class="{}" title="{} {:+.2f} nats">{}</span>').format(name, REGIMES[name][0], gap, token)
        for token, name, gap in zip(response.tokens, response.regimes, response.gaps, strict=True)
    )
    hint = Markup("<details><summary>Privileged text</summary><pre>{}</pre></details>").format(response.privileged)
    return Markup("<section>\n<h2>Prompt</h2>\n<pre>{}</pre>\n{}\n<h2>Response</h2>\n<pre>{}</pre>\n</section>").format(
        response.prompt, hint if response.privileged else "", words
    )
