"""How the cost of an episode grows with ways, shots, frames and queries: a Markdown table and a picture.

    python -m benchmarks.episode_size                                # one thread, about 90 s; makes episode_size.png
    python -m benchmarks.episode_size --rounds 15 --output_dir results

One of the four numbers grows at a time; the others stay at 5-way 5-shot, 8 frames and 25 query videos in total. Rounds
go through all settings, and each time is a median. These are timed on frame features:

- prototypes: computed once from the support videos;
- alignment: distances of queries to prototypes, and probabilities;
- classification: the temporal transformer over the queries, and alignment;
- evaluation: one more episode of an evaluation. It computes prototypes, but the query states are known. Every class has
  at least one query here: episodes of 50 ways or more have one query per way.

For comparison, the visual tower (ViT-B/32, 224 px) is timed on one video and extrapolated to all query videos (~); it
encodes each frame separately. Memory is the peak in the alignment, inputs included; it is counted, not measured. "In
matrices" divides it by the size of the frame distances. One thread is timed by CPU time, which other programs hardly
disturb; several threads, and a GPU, by wall-clock time. Weights and features are random; the cost does not depend on
them.
"""

import platform
import statistics
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers

from benchmarks.memory import LiveBytes
from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.options import parse_options
from configuration_clipfsar import CLIPFSARConfig
from episodes_clipfsar import EpisodeSampler
from modeling_clipfsar import CLIPFSARModel

TITLES = {"n_way": "ways", "n_shot": "shots", "num_frames": "frames per video", "n_queries": "query videos"}
BASE = {"n_way": 5, "n_shot": 5, "num_frames": 8, "n_queries": 25}
EPISODES = 4  # episodes of an evaluation, in one batch
WORK = ("prototypes", "alignment", "classification", "evaluation")
TOWER = "visual tower (~)"


@dataclass
class Arguments:
    n_way: list[int] = field(default_factory=lambda: [5, 10, 25, 50, 100, 200], metadata={"help": "Classes."})
    n_shot: list[int] = field(default_factory=lambda: [1, 2, 5, 10, 20, 50], metadata={"help": "Clips per class."})
    num_frames: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64], metadata={"help": "Frames per video."})
    n_queries: list[int] = field(
        default_factory=lambda: [25, 100, 400, 1600, 3200], metadata={"help": "Query videos of all classes together."}
    )
    rounds: int = field(default=3, metadata={"help": "Rounds, after one warm-up round."})
    num_threads: int = field(default=1, metadata={"help": "Threads on a CPU."})
    output_dir: str = field(default=str(Path(__file__).parent), metadata={"help": "Folder for episode_size.png."})


class Episode:
    """The work of one setting on random features, ready to be timed."""

    def __init__(self, model: CLIPFSARModel, n_way: int, n_shot: int, num_frames: int, n_queries: int):
        device, size = model.device, model.config.hidden_size
        self.model = model
        self.support = torch.randn(1, n_way * n_shot, num_frames, size, device=device)
        self.support_labels = torch.arange(n_way, device=device).repeat_interleave(n_shot)[None]
        self.class_embeds = torch.randn(1, n_way, size, device=device)
        self.queries = torch.randn(1, n_queries, num_frames, size, device=device)
        self.prototypes_made = self.prototypes()

        n_query = max(1, n_queries // n_way)
        labels = np.repeat(np.arange(n_way), n_shot + n_query)
        videos = torch.randn(len(labels), num_frames, size)
        self.features = SplitFeatures(model, videos, self.class_embeds[0], labels)
        self.sampler = EpisodeSampler(labels, n_way, n_shot, n_query)
        self.evaluation()  # query states and text logits of the split, once
        self.query_states = self.features.query_states[None, :n_queries].clone()

    def prototypes(self) -> torch.Tensor:
        return self.model.get_prototypes(self.support, self.support_labels, self.class_embeds)

    def alignment(self) -> torch.Tensor:
        return self.model.get_logits(self.model.get_distances(self.query_states, self.prototypes_made), None).softmax(
            -1
        )

    def classification(self) -> torch.Tensor:
        query_states = self.model.get_query_states(self.queries)
        return self.model.get_logits(self.model.get_distances(query_states, self.prototypes_made), None).softmax(-1)

    def evaluation(self):
        predict_episodes(self.features, self.sampler, range(EPISODES))

    def alignment_bytes(self) -> int:
        with LiveBytes() as live:
            self.alignment()
        return live.peak


def seconds(function) -> float:
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu or torch.get_num_threads() > 1 else time.process_time
    start = clock()
    function()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def plot(times: dict[tuple, dict[str, float]], factors: dict[str, list[int]], path: Path, title: str):
    """Plots time over each factor, log-log, with one vertical scale."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharey=True)
    colours = {"classification": "tab:blue", "alignment": "tab:orange", "prototypes": "tab:green"}
    colours |= {"evaluation": "tab:red", TOWER: "0.35"}
    names = {"evaluation": "evaluation, one more episode", TOWER: "visual tower for the queries (extrapolated)"}
    for axes, (factor, values) in zip(panels.flat, factors.items(), strict=True):
        for work, colour in colours.items():
            taken = [times[setting(factor, value)][work] for value in values]
            style = {"linestyle": "--"} if work == TOWER else {"marker": "o", "markersize": 4}
            axes.plot(values, taken, color=colour, label=names.get(work, work), **style)
        axes.set(xscale="log", yscale="log", xlabel=TITLES[factor], xticks=values, xticklabels=values)
        axes.minorticks_off()
        axes.axvline(BASE[factor], color="0.8", linewidth=1, zorder=0)
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_yticks(
            [0.001, 0.01, 0.1, 1, 10, 100, 1000], ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s", "1000 s"]
        )
        axes.set_ylabel("time")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def setting(factor: str, value: int) -> tuple[int, ...]:
    """Ways, shots, frames and queries: `BASE` with one changed value."""
    return tuple((BASE | {factor: value}).values())


@torch.no_grad()
def main(arguments: Arguments):
    torch.set_num_threads(arguments.num_threads)
    torch.manual_seed(0)
    path = Path(arguments.output_dir) / "episode_size.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CLIPFSARModel(CLIPFSARConfig()).eval().to(device)
    frames = torch.randn(1, BASE["num_frames"], 3, 224, 224, device=device)
    factors = {factor: getattr(arguments, factor) for factor in TITLES}
    settings = dict.fromkeys(setting(factor, value) for factor, values in factors.items() for value in values)
    durations = {key: {work: [] for work in WORK} for key in settings}
    tower, num_bytes = [], {}
    for _ in range(arguments.rounds + 1):
        tower.append(seconds(lambda: model.get_video_features(frames)))
        for key, works in durations.items():
            episode = Episode(model, *key)  # not kept: the features of all settings would fill the memory
            num_bytes[key] = num_bytes.get(key) or episode.alignment_bytes()
            for work, taken in works.items():
                taken.append(seconds(getattr(episode, work)))

    frame_seconds = statistics.median(tower[1:]) / BASE["num_frames"]
    times = {}
    for key, works in durations.items():
        times[key] = {work: statistics.median(taken[1:]) for work, taken in works.items()}
        times[key]["evaluation"] /= EPISODES
        times[key][TOWER] = frame_seconds * key[2] * key[3]

    columns = (
        *(f"{work} / ms" for work in WORK),
        f"{TOWER} / s",
        "classification / tower",
        "alignment's memory",
        "in matrices",
    )
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for factor, values in factors.items():
        for value in values:
            key = setting(factor, value)
            n_way, _, num_frames, n_queries = key
            matrix = 4 * n_queries * n_way * num_frames**2
            cells = [f"{1000 * times[key][work]:.1f}" for work in WORK] + [f"{times[key][TOWER]:.0f}"]
            cells.append(f"{times[key]['classification'] / times[key][TOWER]:.2%}")
            cells += [f"{num_bytes[key] / 2**20:.1f} MiB", f"{num_bytes[key] / matrix:.1f}"]
            print(f"| {value} {TITLES[factor]} | {' | '.join(cells)} |")
    machine = (
        f"{device}, {platform.machine()}, threads: {arguments.num_threads}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {date.today()}"
    )
    others = ", ".join(f"{number} {TITLES[factor]}" for factor, number in BASE.items())
    print(f"\nThe other numbers are {others}; {machine}; picture: {path.name}.")
    plot(times, factors, path, f"Cost of an episode as one number grows; the others stay at the grey line\n{machine}")


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
