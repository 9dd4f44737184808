"""Public benchmark suites: their prompt files read as they are, videos written as their official scorers expect.

    OUT/videos/*.mp4    nothing else lies here: VBench takes the file type from whatever it lists first
    OUT/manifest.json   what made the videos; one that differs refuses to go on
    OUT/sa_pc.csv       VideoPhy-2 only, when every video is there
    OUT/scores.json     what the official scorer found, read back by `import_scores`

The scorers themselves need other versions of torch and transformers than vidalign: docs/real_metrics.md.
"""

from vidalign.bench.suites.base import SUITES, Item, Suite, open_suite
from vidalign.bench.suites.export import ExportConfig, export_videos
from vidalign.bench.suites.scores import import_scores

__all__ = ["SUITES", "ExportConfig", "Item", "Suite", "export_videos", "import_scores", "open_suite"]
