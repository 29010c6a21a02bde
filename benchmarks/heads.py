"""Heads: episodes over cached videos, compared with TRX's official way of a loop over classes, as Markdown tables.

    python -m benchmarks.heads                                              # 10,000 episodes over 2,400 videos per head
    python -m benchmarks.heads --n_episodes 500 --videos_per_class 20       # a quick look

The official way makes the tuples of all videos of an episode anew, and loops over cardinalities and classes. It runs on
cached frame features, like ours: the visual tower counts in neither. Both take turns on the same episodes; the ratio is
the median over turns. The program first checks that both give the same distances. The second table holds everything
after the frame features, "encoding" included, which is done once per video. Weights and features are random; the cost
does not depend on them.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import torch
from transformers import CLIPConfig

from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.options import parse_options
from configuration_clipfsar import CLIPFSARConfig
from episodes_clipfsar import EpisodeSampler
from heads_clipfsar import TRX, _sine_code
from modeling_clipfsar import CLIPFSARModel, evaluating


@dataclass
class Arguments:
    alignments: list[str] = field(
        default_factory=lambda: ["otam", "bi_mhm", "mean", "chamfer", "trx", "hyrsm"], metadata={"help": "Heads."}
    )
    num_classes: int = field(default=24, metadata={"help": "Classes of the split."})
    videos_per_class: int = field(default=100, metadata={"help": "Videos of each class."})
    hidden_size: int = field(default=512, metadata={"help": "Size of a frame feature; ViT-B's is 512."})
    n_query: int = field(default=1, metadata={"help": "Query videos per class."})
    n_episodes: int = field(default=10_000, metadata={"help": "1-shot episodes of five classes."})
    rounds: int = field(default=5, metadata={"help": "Turns of TRX's official way and of ours."})
    num_threads: int = field(default=2, metadata={"help": "Threads on a CPU."})


def features_of(arguments: Arguments, alignment: str) -> SplitFeatures:
    """Random frame features, compared without temporal transformer and texts."""
    torch.manual_seed(0)
    clip_config = CLIPConfig(
        text_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1},
        vision_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1},
        projection_dim=arguments.hidden_size,
    )
    plain = {"temporal_num_layers": 0, "prototype_modulation": False}
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=clip_config, alignment=alignment, **plain)).eval()
    labels = np.repeat(np.arange(arguments.num_classes), arguments.videos_per_class)
    classes = torch.randn(arguments.num_classes, arguments.hidden_size)
    videos = classes[torch.as_tensor(labels), None] + torch.randn(len(labels), 8, arguments.hidden_size)
    return SplitFeatures(model.to("cuda" if torch.cuda.is_available() else "cpu"), videos, classes, labels)


def trx_by_classes(head: TRX, support: torch.Tensor, labels: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """TRX as the official program computes it, for one episode: (S, T, D), (S,), (Q, T, D) -> distances (Q, N)."""
    distances = []
    for c, key_map, value_map, norm in zip(
        head.cardinalities, head.key_maps, head.value_maps, head.key_norms, strict=True
    ):
        rows = list(itertools.combinations(range(support.shape[1]), c))
        code = 0.1 * _sine_code(*support.shape[1:], support)
        tuples = [torch.stack([(x + code)[:, list(row)].flatten(1) for row in rows], 1) for x in (support, query)]
        keys, query_keys = (norm(key_map(one)) for one in tuples)
        values, query_values = (value_map(one) for one in tuples)
        of_classes = []
        for label in labels.unique():
            own = labels == label
            scores = query_keys @ keys[own].flatten(0, 1).T / keys.shape[-1] ** 0.5
            expected = scores.softmax(-1) @ values[own].flatten(0, 1)
            of_classes.append(((query_values - expected) ** 2).sum((-2, -1)) / len(rows))
        distances.append(torch.stack(of_classes, -1))
    return torch.stack(distances).mean(0)


def compare_with_official_way(arguments: Arguments) -> None:
    """Prints milliseconds per episode of both ways, and their ratio, for 1 and 5 shots."""
    features = features_of(arguments, "trx")
    head, labels = features.model.comparison_head, features.labels.cpu().numpy()
    assert isinstance(head, TRX)
    _ = features.encoded_shots
    print("| TRX in evaluation, ms per episode | loop over classes | ours | ratio |\n|---|---|---|---|")
    for n_shot in (1, 5):
        sampler = EpisodeSampler(labels, 5, n_shot, arguments.n_query)
        drawn = [sampler.sample(index) for index in range(8)]
        support, query = (
            torch.as_tensor(np.stack([getattr(one, f"{role}_rows") for one in drawn])) for role in ("support", "query")
        )
        ids, query = torch.as_tensor(np.stack([one.class_ids for one in drawn])), query.flatten(1)
        own = torch.arange(5).repeat_interleave(n_shot)

        def loop(support=support, query=query, own=own):
            videos = zip(features.video_embeds[support.flatten(1)], features.video_embeds[query], strict=True)
            return torch.stack([trx_by_classes(head, shots, own, queries) for shots, queries in videos])

        def ours(support=support, query=query, ids=ids):
            return features.distances(query, support, ids)

        with evaluating(features.model):
            torch.testing.assert_close(ours(), loop(), rtol=1e-3, atol=1e-3)
            turns = [(_seconds(loop), _seconds(ours)) for _ in range(arguments.rounds)]
        slow, fast = (1000 * statistics.median(times) / len(drawn) for times in zip(*turns, strict=True))
        ratio = statistics.median(one / other for one, other in turns)
        print(f"| 5-way {n_shot}-shot, {5 * arguments.n_query} queries | {slow:.1f} | {fast:.2f} | {ratio:.0f} x |")


def _seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(arguments: Arguments):
    torch.set_num_threads(arguments.num_threads)
    print(f"{date.today()}, {arguments.num_threads} thread(s), torch {torch.__version__}\n")
    compare_with_official_way(arguments)
    count = arguments.num_classes * arguments.videos_per_class
    print(
        f"\n| {arguments.n_episodes:,} episodes, 5-way 1-shot, {count:,} videos | weights | encoding, s | episodes, s |"
    )
    print("|---|---|---|---|")
    for alignment in arguments.alignments:
        features = features_of(arguments, alignment)
        head = features.model.comparison_head
        weights = 0 if head is None else sum(parameter.numel() for parameter in head.parameters())
        encoding = _seconds(lambda: features.encoded_shots) if head is not None else 0.0  # noqa: B023
        sampler = EpisodeSampler(features.labels.cpu().numpy(), 5, 1, arguments.n_query)
        episodes = _seconds(lambda: predict_episodes(features, sampler, range(arguments.n_episodes)))  # noqa: B023
        print(f"| {alignment} | {weights:,} | {encoding:.1f} | {episodes:.1f} |", flush=True)


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
