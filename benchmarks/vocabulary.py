# SPDX-License-Identifier: Apache-2.0
"""Time of a token, and bytes read for it, by size of the vocabulary: whole matrix, screened, and the peers.

python benchmarks/vocabulary.py trained.gguf [--sizes 1000 4000 ...] [--folder benchmarks/report]

The model gives its most frequent words; beyond its own, rows are those of its rarer half again, a little changed.
Screens are made for the models' own text. Writes vocabulary.json and vocabulary.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

import fastlm
from compare import Company, Settings, decode, make_probe, table
from fastlm.format import unpack
from fastlm.screening import PANEL
from harness import all_forms
from peer_fastlm import FORMS, SCREENED
from plots import COLOURS, plain_numbers
from workloads import Workload

SIZES = (1000, 4000, 16000, 64000, 256000)
WHOLE, SCREENED_INT8 = (next(f for f in FORMS if (f.precision, f.how) == ("int8", how)) for how in ("", SCREENED))
PEERS = ("ONNX Runtime", "LiteRT")


def resized(source: Path, V: int, path: Path) -> None:
    """The model with a vocabulary of V."""
    arrays = unpack(source).to_dict()
    own, random = len(arrays["embedding"]), np.random.default_rng(0)
    again = random.integers(own // 2, own, max(0, V - own))
    rows = np.concatenate([np.arange(min(own, V)), again])

    def changed(array: np.ndarray) -> np.ndarray:
        found = array[rows].copy()
        found[own:] += random.normal(size=found[own:].shape).astype(np.float32) * 0.1 * array.std()
        return found

    output = arrays.get("output.kernel", arrays["embedding"].T)
    arrays |= {"embedding": changed(arrays["embedding"]), "output.kernel": np.ascontiguousarray(changed(output.T).T)}
    arrays["output.bias"] = arrays["output.bias"][rows]
    fastlm.export(arrays, path, bos=fastlm.load(source).bos)


def bytes_read(workload: Workload, folder: Path) -> dict[str, float]:
    """Of weights, for a greedy token: all of them, or the cells', the screen's, and the panels that are finished."""
    path = folder / f"{workload.name}-int8-{SCREENED}.gguf"
    whole = workload.streamed_bytes("int8")
    if not path.exists():
        return {"whole": whole}
    model = fastlm.load(path, threads=1, screening="always")
    screen = sum(size for name, _, _, size, _ in model._engine.tensors() if name.startswith("output.screen."))
    text = model.generate(workload.start(1), max_tokens=300, temperature=0.0)
    rows = text.timings["rows_finished"] / max(1, text.timings["screened_tokens"])
    finished = min(workload.V, PANEL * rows) * workload.H  # each in a panel of its own, at most
    return {"whole": whole, "screened": whole - workload.V * workload.H + screen + finished, "rows": rows}


def _style(peer: str, filled: bool) -> dict[str, Any]:
    """A hollow marker lets the one behind it be seen."""
    face = COLOURS[peer] if filled else "none"
    return {"color": COLOURS[peer], "linestyle": "-" if filled else "--", "marker": "o", "markerfacecolor": face,
            "markersize": 5 if filled else 8}  # fmt: skip


def draw(points: list[dict[str, Any]], path: Path) -> None:
    mpl.use("Agg")
    figure, (time, size) = plt.subplots(1, 2, figsize=(11, 4.2))
    names = {str(WHOLE): "fastlm int8, whole matrix", str(SCREENED_INT8): "fastlm int8, screened"}
    for name in dict.fromkeys(name for point in points for name in point["forms"]):
        at = [point for point in points if name in point["forms"]]
        times = [point["forms"][name]["median_us"] for point in at]
        style = _style(at[0]["forms"][name]["peer"], filled=name == str(SCREENED_INT8))
        time.plot([point["sizes"]["V"] for point in at], times, label=names.get(name, name), **style)
    for kind, label in (("whole", "whole matrix"), ("screened", "screened")):
        at = [point for point in points if kind in point["bytes"]]
        read = [point["bytes"][kind] / 1e6 for point in at]
        style = _style("fastlm", filled=kind == "screened")
        size.plot([point["sizes"]["V"] for point in at], read, label=f"fastlm int8, {label}", **style)
    for axes, label in ((time, "µs a token"), (size, "MB read for a token")):
        axes.set(xscale="log", yscale="log", xlabel="words in the vocabulary", ylabel=label)
        axes.grid(True, which="both", color="#e4e4e4")
        axes.legend(frameon=False, fontsize=9)
        plain_numbers(axes.xaxis)
        plain_numbers(axes.yaxis)
    sizes = points[0]["sizes"]
    figure.suptitle(
        f"{sizes['L']} LSTM layer{'s' * (sizes['L'] > 1)} of {sizes['H']} units, one thread, greedy",
        x=0.01,
        ha="left",
        weight="bold",
    )
    figure.savefig(path, bbox_inches="tight", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a trained model in float32, with layers of one size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "report")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    peers = [
        form for form in all_forms() if form.peer in PEERS and form.precision == "int8" and form.role == "contender"
    ]
    points = []
    with tempfile.TemporaryDirectory() as directory, open(Path(directory) / "log", "w") as log:
        folder = Path(directory)
        settings = Settings(arguments.rounds, 0.3, folder, log, make_probe(folder))
        for V in arguments.sizes:
            source = folder / f"words-{V}.gguf"
            resized(arguments.model, V, source)
            workload = Workload.of_model(source)
            with Company([WHOLE, SCREENED_INT8, *peers], workload, 1, settings) as company:
                points.append(decode(company, 1, settings))
            points[-1]["bytes"] = bytes_read(workload, folder)
            print(table(points[-1]), points[-1]["bytes"], flush=True)
            for file in folder.glob(f"words-{V}*"):
                file.unlink()
    (arguments.folder / "vocabulary.json").write_text(json.dumps(points, indent=2) + "\n")
    draw(points, arguments.folder / "vocabulary.png")


if __name__ == "__main__":
    main()
