"""Tables of the measurements in `results/` that are no benchmark."""

from __future__ import annotations

from itertools import permutations
from typing import Any


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def perturbations(result: dict[str, Any]) -> str:
    """What scorer and auditor make of corrupted ground truth."""
    audited = ("audit/composite", "audit/lawful", "audit/pass")
    names = [name for name in result["rows"]["ground truth"] if not name.startswith("audit/") or name in audited]
    rows = [[row, *(f"{scores[name]:.3f}" for name in names)] for row, scores in result["rows"].items()]
    return f"`{result['command']}`, {result['machine']}.\n\n" + table(["clips", *names], rows)


def events_acceptance(result: dict[str, Any]) -> str:
    """What rewards find to rank behind a shared beginning, of ground truth and of students."""
    parts = [
        "Group spread of the mean reward where candidates fork at a chunk, against chunk 0, and what ground truth and "
        "students must show (`vidalign/worlds/events/acceptance.py`). Success is the scorer's strict pass. In the "
        "band: the share of groups of which .2 to .8 succeed."
    ]
    for name, figures in result.items():
        rows = [
            [fork["fork"], f"{fork['spread']['reward']:.4f}", f"{against:.2f}", f"{fork['spread']['auditor']:.4f}"]
            + [f"{fork['means'][key]:.3f}" for key in ("strict_pass", "lawful", "pass")]
            + [f"{fork['in_band']:.2f}"]
            for fork, against in zip(figures["forks"], figures["spread_against_first"], strict=True)
        ]
        columns = ["fork", "spread", "against chunk 0", "auditor's spread", "success", "lawful", "auditor, passed"]
        met = ", ".join(f"{demand}: {'yes' if fine else 'no'}" for demand, fine in figures["criteria"].items())
        alone = figures.get("initial_noise_share")
        share = "" if alone is None else f" Initial noise alone has {alone:.2f} of the median spread of all noise."
        alike = ", ".join(f"{pair} {value:.2f}" for pair, value in figures["rank_correlations"].items())
        parts += [
            f"**{name}**: `{figures['command']}`, seed {figures['seed']}, commit {figures['commit']}, "
            f"{figures['machine']}.",
            table([*columns, "in the band"], rows),
            f"Demands: {met}.{share} Rank correlations inside a caption at chunk 0: {alike}.",
        ]
    return "\n\n".join(parts)


def rewards_check(result: dict[str, Any]) -> str:
    """What the rewards of a recipe see of the student that it begins with, and what they do to each other."""
    header, names = result["header"], list(next(iter(result["corruptions"].values())))
    seen = [
        [row, *(f"{c[n]['lower']:.2f} {c[n]['verdict']}" for n in names)] for row, c in result["corruptions"].items()
    ]
    alike = {pair: one["correlation"] for one in result["correlations"] for pair in permutations(one["rewards"])}
    gains = {(one["by"], one["judge"]): one["gain"] for one in result["best_of"]}
    held = {(one["judge"], one["by"]): (one["gain"], one["correlation"]) for one in result["held_out"]}
    size = f"{result['candidates']} candidates of each of {result['prompts']} prompts"
    return "\n\n".join(
        [
            f"`{header['command']}`, seed {header['seed']}, commit {header['commit']}, {header['machine']}.\n"
            f"{size}, of the student that the recipe begins with. Share of the clips that lose by a corruption:",
            table(["corruption", *names], seen),
            "Rank correlation inside a prompt:",
            table(["", *names], [[a, *("1" if a == b else f"{alike[a, b]:.2f}" for b in names)] for a in names]),
            f"Best of {result['candidates']}: gain of a column in its standard deviations, by the reward that chooses:",
            table(["chosen by", *names], [[a, *(f"{gains[a, b]:+.2f}" for b in names)] for a in names]),
            "The same gain of held-out metrics by the reward that chooses, a column, and the rank correlation:",
            table(
                ["judge", *names],
                [
                    [judge, *("{:+.2f} ({:.2f})".format(*held[judge, by]) for by in names)]
                    for judge in dict.fromkeys(judge for judge, _ in held)
                ],
            ),
        ]
    )


def rollout(result: dict[str, Any]) -> str:
    """Cost of rollouts: phases of a chunk, sharing a prefix, caching."""
    place, names = result["machine"], ["batch", "denoise_ms", "clean_ms", "decode_ms", "first_frames_ms"]
    machine = f"{place['device']}, {place['threads']} {'thread' if place['threads'] == 1 else 'threads'}"
    parts = [
        f"`{result['command']}`, {machine}, torch {place['torch']}; random weights.",
        table(
            ["batch", "denoise, ms a chunk", "clean pass, ms a chunk", "decode, ms a chunk", "first frames after, ms"],
            [[row[name] for name in names] for row in result["phases"]],
        ),
    ]
    if "sharing" in result:
        sharing = [[r["plan"], f"{r['time_ratio']:.2f}", f"{r['forward_ratio']:.2f}"] for r in result["sharing"]]
        parts += [
            "A shared prefix against G = 8 independent rollouts (forwards of one chunk, clean passes included):",
            table(["plan, chunks", "time ratio", "forward ratio"], sharing),
        ]
    if "caching" in result:
        parts += [
            "The cache against recomputing the past for every forward, same latents:",
            table(["chunks", "times faster"], [[r["chunks"], f"{r['speed_up']:.2f}"] for r in result["caching"]]),
        ]
    return "\n\n".join(parts)


def long_tuning(result: dict[str, Any]) -> str:
    """Peak memory of a step of long tuning."""
    rows = [
        [f"{r['lengths']}x", r["frames"], r["window_frames"], f"{r['peak_mib']:.1f}", f"{r['cache_mib']:.1f}"]
        for r in (*result["window"], result["whole"])
    ]
    first, *_ = result["window"]
    return (
        f"`{result['command']}`, commit {result['commit']}, {result['machine']}.\n"
        "Peak memory of one training step above the weights; the window is the last one of the video. The cache is\n"
        "what a rolled history leaves (2 prompts); every chunk of the window reads it, broadcast over the group.\n"
        f"Weights and weight sets take {first['resident_mib']:.1f} MiB more: with them, the window at 4 lengths takes "
        f"{result['ratio']:.2f} of what\nback-propagating through the whole video takes (last row).\n\n"
        + table(["video, training lengths", "frames", "frames trained on", "peak, MiB", "cache, MiB"], rows)
    )


def precision(result: dict[str, Any]) -> str:
    """Speed of the quickstart's step by precision."""
    rows = [
        [r["precision"], r["used"], f"{r['seconds']:.2f}", f"{r['gflops']:.0f}", f"{r['product_gflops']:.0f}"]
        for r in result["rows"]
    ]
    return (
        f"`{result['command']}`, commit {result['commit']}, {result['machine']}.\n"
        f"Medians of one training step of `world/astrolabe`, {result['rows'][0]['gflop']:.0f} GFLOP in its networks; "
        "the product is that of two matrices of 1024 x 1024.\n\n"
        + table(["precision", "computed in", "seconds a step", "GFLOP/s", "GFLOP/s of a product"], rows)
    )


def lm_head_memory(result: dict[str, Any]) -> str:
    """Memory and time of token losses behind the language model's head."""
    sizes, place, measured = result["sizes"], result["machine"], [r for r in result["rows"] if not r["extrapolated"]]
    load = result["load"]
    trl = result["versions"]["trl"] or "not installed"
    rows = [
        [
            row["tokens"],
            row["loss"] + (" (extrapolated)" if row["extrapolated"] else ""),
            f"{row['peak_gib']:.2f}",
            f"{row['resident_gib']:.2f}" if "resident_gib" in row else "",
            _share(row, result["rows"]),
            f"{min(row['seconds']):.2f}",
            f"{min(row['cpu_seconds']):.2f}",
            _ratio(row),
            0 if row["extrapolated"] else len(row["seconds"]),
        ]
        for row in sorted(result["rows"], key=lambda row: row["tokens"])
    ]
    naive = max((r["tokens"] for r in measured if r["loss"] == "naive"), default=0)
    columns = [
        "tokens",
        "loss",
        "peak, GiB",
        "resident, GiB",
        "of `naive`",
        "seconds",
        "CPU seconds",
        "time of TRL's",
        "runs",
    ]
    text = (
        f"`{result['command']}`, commit {result['commit']}, {place}, TRL {trl}.\n"
        f"Hidden size {sizes['hidden']}, vocabulary {sizes['vocabulary']}, {sizes['dtype']}; one forward and backward, "
        "all in one process. Peaks lie above the inputs\nand include the gradients; resident memory is what the "
        "process grew by. Times are the least of the runs; ratios to TRL's loss\npair runs of the same round "
        f"(median, least .. largest) by {result['clock'].replace('_', ' ')}. 1-minute load of the machine "
        f"{min(load):.1f} to {max(load):.1f} on {result['cores']} cores, this\nprocess included: above its threads, "
        f"other programs ran beside it and lengthened the seconds. `naive` was run up to\n"
        f"{naive} tokens; beyond, it is the line through its two largest counts."
    )
    return "\n\n".join([text, table(columns, rows), _claims(result)])


def _share(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Peak as a share of `naive`'s at the same tokens, with a mark where that is a line and no run."""
    whole = next((r for r in rows if r["loss"] == "naive" and r["tokens"] == row["tokens"]), None)
    if whole is None or row["extrapolated"]:
        return ""
    return f"{row['peak_gib'] / whole['peak_gib']:.0%}" + (" of a line" if whole["extrapolated"] else "")


def _ratio(row: dict[str, Any]) -> str:
    if "time_of_trl" not in row:
        return ""
    low, middle, high = row["time_of_trl"]
    return f"{middle:.2f}" + (f" ({low:.2f} .. {high:.2f})" if len(row["seconds"]) > 1 else "")


def _claims(result: dict[str, Any]) -> str:
    """Whether the two losses of this package keep what was asked: a quarter of `naive`'s memory, TRL's time."""
    tokens, paired = result["sizes"]["tokens"], result["sizes"]["paired_tokens"]
    found = {(row["loss"], row["tokens"]): row for row in result["rows"]}
    whole, other = found.get(("naive", tokens)), found.get(("trl", tokens))
    lines = []
    for name in ("projected", "routed"):
        row, small = found.get((name, tokens)), found.get((name, paired), {})
        if row is None or whole is None:
            continue
        times = whole["peak_gib"] / row["peak_gib"]
        lines.append(
            f"- `{name}`, {tokens} tokens: {times:.1f} times less peak memory than the "
            f"{'extrapolated' if whole['extrapolated'] else 'measured'} `naive` (asked: 4, {_kept(times >= 4)}),\n  "
            f"in {_least(row, result) / _least(whole, result):.1f} times its time"
        )
        if other is None:
            lines[-1] += "; not compared with TRL's loss."
            continue
        memory, share = row["peak_gib"] / other["peak_gib"], row["time_of_trl"][1]
        lines[-1] += f"; {memory:.2f} of the peak of TRL's loss and {share:.2f} of its time "
        lines[-1] += f"(asked: 1, {_kept(share <= 1)}; runs: {len(row['seconds'])})"
        lines[-1] += f";\n  at {paired} tokens {_ratio(small)} of its time." if "time_of_trl" in small else "."
    return "\n".join([*lines, *_bounds(found, result)])


def _bounds(found: dict[tuple[str, int], dict[str, Any]], result: dict[str, Any]) -> list[str]:
    """What is asked of `projected`, where it was measured beside `before` (what it replaced) or `checkpointed`."""
    tokens, paired = result["sizes"]["tokens"], result["sizes"]["paired_tokens"]
    row, few, naive = found.get(("projected", tokens)), found.get(("projected", paired)), found.get(("naive", paired))
    if row is None or "time_of_checkpointed" not in row:
        return []
    base = "before" if "time_of_before" in row else "checkpointed"
    asked = [(f"of `{base}`'s time at {tokens} tokens", row[f"time_of_{base}"][1], 0.55)]
    if "time_of_trl" in row:
        asked.append((f"of TRL's time at {tokens} tokens", row["time_of_trl"][1], 0.65))
    asked.append((f"head gradients of peak memory at {tokens} tokens", row["head_gradients"], 1.6))
    if few is not None and naive is not None:
        asked.append((f"of `naive`'s time at {paired} tokens", _least(few, result) / _least(naive, result), 1.0))
    return [f"- `projected`: {value:.2f} {what} (asked: {most}, {_kept(value <= most)})" for what, value, most in asked]


def _kept(kept: bool) -> str:
    return "kept" if kept else "missed"


def _least(row: dict[str, Any], result: dict[str, Any]) -> float:
    return min(row[result["clock"]])


def ar_copo_merge(result: dict[str, Any]) -> str:
    """Sweeps over the scale of the on-policy adapter; the file holds `merge.json` of a run for every training seed."""
    rows = []
    for run in result["runs"]:
        seed = run["header"]["seed"]
        for one in run["judged"]:
            gains = []
            for domain in ("in_domain", "out_of_domain"):
                low, high = one[f"{domain}_interval"]
                gains.append(f"{one[f'{domain}_gain']:+.3f} ({low:+.3f} .. {high:+.3f})")
            rows.append([seed, one["scale"], *gains, "yes" if one["scale"] == run["scale"] else ""])
    commits = ", ".join(dict.fromkeys(run["header"]["commit"] for run in result["runs"]))
    return (
        f"`{result['command']}`\nwith N the training seed, commit {commits}, {result['machine']}.\n"
        "`W0 + dW_semi + s dW_on`, gains over W0: trained rewards on training prompts, the auditor on combinations "
        "that are never trained on;\n95 % bootstrap intervals over prompts. The last column is the choice of the "
        "paper's rule.\n\n" + table(["seed", "s", "trained rewards", "out of domain", "chosen"], rows)
    )


def discriminator(result: dict[str, Any]) -> str:
    """Pair accuracy against the ranking of one prompt's videos, along warm-ups."""
    names = ["learning_rate", "steps", "held_out_accuracy", "group_std", "correlation", "rank_correlation"]
    return (
        f"`{result['command']}`, seed {result['seed']}, commit "
        f"{result['commit']}, {result['machine']}.\nScores of 8 videos of one prompt against the auditor's, within "
        "the groups of 32 held-out prompts; accuracy on pairs of prompts\nthat are never trained on.\n\n"
        + table([name.replace("_", " ") for name in names], [[row[name] for name in names] for row in result["rows"]])
    )


def update_kept(result: dict[str, Any]) -> str:
    """What saving keeps of an adapter's update on a base in bf16."""
    rows = [[f"{r['rate']:g}", r["steps"], f"`{r['path']}`", f"{r['kept']:.1%}"] for r in result["rows"]]
    return (
        f"`{result['command']}`, seed {result['seed']}, commit {result['commit']}, {result['machine']}.\nThe "
        "student of the token world from a folder in bf16, an adapter of rank 8 by `tokens/opsd`; the share of the "
        "update that is in each file.\n\n" + table(["learning rate", "steps", "file", "kept"], rows)
    )


def clip_store(result: dict[str, Any]) -> str:
    """The first clip of a long video."""
    rows = [[f"`{r['way']}`", r["seconds"], r["above_imports_mib"]] for r in result["rows"]]
    return (
        f"`{result['command']}`, seed {result['seed']}, commit {result['commit']}, {result['machine']}.\n"
        f"{result['seconds']} seconds of 720p at 24 frames a second for a student of 12 frames, which needs the first "
        "one. `whole` decodes and stacks all frames.\n\n" + table(["way", "seconds", "MiB above the imports"], rows)
    )


def score_ahead(result: dict[str, Any]) -> str:
    """How much of a slow reward is hidden behind the rollout."""
    columns = list(result["rows"][0])
    return (
        f"`{result['command']}`, seed {result['seed']}, commit {result['commit']}, {result['machine']}.\nThe reward "
        "waits for each part of the rollout, as one behind a server does; seconds are medians of a step.\n\n"
        + table(columns, [[row[name] for name in columns] for row in result["rows"]])
    )


def token_step(result: dict[str, Any]) -> str:
    """Memory of token distillation at real size, and its speed where it was run."""
    phases = list(dict.fromkeys(phase for r in result["rows"] for phase in r["planned_gb"]))
    extra = [name for name in ("seconds", "tokens_a_second", "measured_gb") if name in result["rows"][0]]
    rows = [
        [f"`{r['recipe']}`", r["responses"], r["response_tokens"]]
        + [r["planned_gb"].get(phase, "") for phase in phases]
        + [r[name] for name in extra]
        for r in result["rows"]
    ]
    columns = ["recipe", "responses", "tokens each", *(f"{phase}, GB" for phase in phases)]
    return (
        f"`{result['command']}`, seed {result['seed']}, commit {result['commit']}, {result['machine']}.\nPlanned peak "
        "of each phase on one GPU, weights and optimiser included."
        + ("" if extra else " The step was not run: no accelerator was at hand.")
        + "\n\n"
        + table([*columns, *(name.replace("_", " ") for name in extra)], rows)
    )


MEASUREMENTS = {
    "token_step": ("A step of token distillation at the size of Qwen3", token_step),
    "clip_store": ("A long video in a clip store", clip_store),
    "score_ahead": ("Rewards beside the rollout", score_ahead),
    "update_kept": ("What saving keeps of an update", update_kept),
    "ar_copo_merge": ("Merged adapters of AR-CoPO", ar_copo_merge),
    "discriminator": ("The discriminator in its warm-up", discriminator),
    "lm_head_memory": ("Losses behind the head", lm_head_memory),
    "lm_head_memory_gpu": ("Losses behind the head, on a GPU", lm_head_memory),
    "lm_head_memory_gpu_bf16": ("Losses behind the head, on a GPU in bf16", lm_head_memory),
    "precision": ("Precision of the quickstart", precision),
    "long_tuning": ("Long tuning", long_tuning),
    "long_tuning_gpu": ("Long tuning, on a GPU", long_tuning),
    "perturbations": ("Corrupted ground truth", perturbations),
    "perturbations_events": ("Corrupted ground truth of the event world", perturbations),
    "events_acceptance": ("Does the event world discriminate?", events_acceptance),
    "proxy_rewards": ("Proxy rewards of the video world", rewards_check),
    "rollout": ("Rollouts", rollout),
    "rollout_gpu": ("Rollouts, on a GPU", rollout),
    "rollout_wan_gpu": ("Rollouts at the size of Wan2.1 1.3B, on a GPU", rollout),
}
"""Files in `results/` that are no benchmark: heading, and what shows them."""
