"""Evaluation over many episodes: a plain loop compared with `clipfsar evaluate`, as a Markdown table.

    python -m benchmarks.evaluation                              # 10,000 episodes over 2,400 videos, some minutes
    python -m benchmarks.evaluation --vision vit_b16             # the loop on pixels with CLIP's real visual tower
    python -m benchmarks.evaluation --num_classes 8 --videos_per_class 20 --n_episodes 500       # a quick look

Four methods compute the accuracy over episodes of a fixed set of videos:

- pixels: `model.forward` on the pixels of one episode at a time, as in the official program;
- embeddings: `model.forward` on cached frame features of one episode at a time;
- ours: `SplitFeatures` and `predict_episodes`, which compute everything that is the same in all episodes only once;
- exact: for 1-shot, the expectation over all possible episodes instead of a sample.

Weights, features and pixels are random; the cost does not depend on them. The loops run on a few episodes and take
turns with ours, so that a slow machine slows all of them equally. Their time for all episodes is extrapolated (marked
~). Ours and exact are measured completely. "Encoding" is one pass of the visual tower over all videos, also
extrapolated. The program checks that ours and the loop give the same answers. It decodes no videos. In practice the
loop on pixels decodes every video in each of its episodes, and encoding decodes each video once.
"""

import platform
import sys
import time
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import torch
import transformers
from transformers import CLIPConfig

from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.exact_accuracy import exact_accuracy_of_videos
from clipfsar.evaluation.report import EpisodePredictions
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.options import parse_options
from configuration_clipfsar import CLIPFSARConfig
from episodes_clipfsar import EpisodeSampler
from modeling_clipfsar import CLIPFSARModel

# Visual towers for the loop on pixels. Both give frame features of size 512, as CLIP's ViT-B.
VISION = {
    "small": {"image_size": 64, "patch_size": 16, "hidden_size": 256, "intermediate_size": 1024}
    | {"num_hidden_layers": 4, "num_attention_heads": 4},
    "vit_b16": {"image_size": 224, "patch_size": 16},  # the other sizes are transformers' defaults
}


@dataclass
class Arguments:
    num_classes: int = field(default=24, metadata={"help": "Classes of the split."})
    videos_per_class: int = field(default=100, metadata={"help": "Videos of each class."})
    num_frames: int = field(default=8, metadata={"help": "Frames per video."})
    n_way: int = field(default=5, metadata={"help": "Classes per episode."})
    n_shot: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Support videos per class; several."})
    n_query: int = field(default=1, metadata={"help": "Query videos per class."})
    n_episodes: int = field(default=10_000, metadata={"help": "Episodes per number of shots."})
    loop_episodes: int = field(default=100, metadata={"help": "Episodes that the loop on embeddings runs."})
    pixel_episodes: int = field(default=2, metadata={"help": "Episodes that the loop on pixels runs."})
    vision: str = field(
        default="small",
        metadata={"help": "Visual tower: 4 layers of width 256 at 64 px, or ViT-B/16 at 224.", "choices": list(VISION)},
    )
    rounds: int = field(default=2, metadata={"help": "Turns of the loops and of ours."})
    exact: bool = field(default=True, metadata={"help": "Also time the exact 1-shot accuracy."})


def random_features(arguments: Arguments) -> SplitFeatures:
    torch.manual_seed(0)
    clip_config = CLIPConfig(vision_config=VISION[arguments.vision], projection_dim=512)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=clip_config, num_frames=arguments.num_frames)).to(device)
    labels = np.repeat(np.arange(arguments.num_classes), arguments.videos_per_class)
    class_embeds = torch.randn(arguments.num_classes, 512)
    # Features of a video contain its class's features: otherwise round-off would decide between near ties.
    videos = class_embeds[torch.as_tensor(labels), None] + 15 * torch.randn(len(labels), arguments.num_frames, 512)
    return SplitFeatures(model, videos, class_embeds, labels)


@torch.no_grad()
def loop_on_embeddings(features: SplitFeatures, sampler: EpisodeSampler, indices: range) -> np.ndarray:
    """Predicted classes (E, Q), computed with a plain loop."""
    device = features.video_embeds.device
    support_labels = torch.arange(sampler.n_way, device=device).repeat_interleave(sampler.n_shot)[None]
    predictions = []
    for index in indices:
        episode = sampler.sample(index)
        logits = features.model(
            support_embeds=features.video_embeds[episode.support_rows.flatten()][None],
            support_labels=support_labels,
            query_embeds=features.video_embeds[episode.query_rows.flatten()][None],
            class_embeds=features.class_embeds[episode.class_ids][None],
        ).logits
        predictions.append(episode.class_ids[logits[0].argmax(-1).cpu().numpy()])
    return np.stack(predictions)


@torch.no_grad()
def loop_on_pixels(features: SplitFeatures, sampler: EpisodeSampler, indices: range):
    """Runs the model on one episode at a time. All episodes use the same random pixels, since each costs the same."""
    device, size = features.video_embeds.device, features.model.config.clip_config.vision_config.image_size
    num_frames = features.video_embeds.shape[1]
    support_labels = torch.arange(sampler.n_way, device=device).repeat_interleave(sampler.n_shot)[None]
    support, query = (
        torch.randn(1, sampler.n_way * n, num_frames, 3, size, size, device=device)
        for n in (sampler.n_shot, sampler.n_query)
    )
    for index in indices:
        classes = sampler.sample(index).class_ids
        features.model(
            support_pixel_values=support,
            support_labels=support_labels,
            query_pixel_values=query,
            class_embeds=features.class_embeds[classes][None],
        )


class Stopwatch:
    """Seconds of named pieces of work, added up."""

    def __init__(self):
        self.seconds = {}

    def __call__(self, name: str, function, *arguments):
        start = _now()
        result = function(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + _now() - start
        return result


def measure(arguments: Arguments, features: SplitFeatures, n_shot: int) -> dict[str, float]:
    """Seconds of `pixels`, `embeddings` and `ours` (for all episodes) and of `encoding` (for all videos).

    Raises:
        RuntimeError: When ours answers differently from the loop.
    """
    fresh = SplitFeatures(  # nothing of another number of shots is reused
        features.model, features.video_embeds, features.class_embeds, features.labels.cpu().numpy()
    )
    sampler = EpisodeSampler(fresh.labels.cpu().numpy(), arguments.n_way, n_shot, arguments.n_query)
    size = features.model.config.clip_config.vision_config.image_size
    encoded = torch.randn(8, arguments.num_frames, 3, size, size, device=fresh.video_embeds.device)
    loop_on_embeddings(fresh, sampler, range(2))  # warm up
    stopwatch, slow, fast = Stopwatch(), [], []
    for turn in range(arguments.rounds):
        stopwatch("pixels", loop_on_pixels, fresh, sampler, _share(arguments.pixel_episodes, turn, arguments.rounds))
        stopwatch("encoding", torch.no_grad()(features.model.get_video_features), encoded)
        share = _share(arguments.loop_episodes, turn, arguments.rounds)
        slow.append((share, stopwatch("embeddings", loop_on_embeddings, fresh, sampler, share)))
        share = _share(arguments.n_episodes, turn, arguments.rounds)
        fast.append(stopwatch("ours", predict_episodes, fresh, sampler, share)["few_shot"])
    _check_same_answers(slow, fast)
    seconds = stopwatch.seconds
    return {
        "pixels": seconds["pixels"] / arguments.pixel_episodes * arguments.n_episodes,
        "encoding": seconds["encoding"] / arguments.rounds / len(encoded) * len(fresh.video_embeds),
        "embeddings": seconds["embeddings"] / arguments.loop_episodes * arguments.n_episodes,
        "ours": seconds["ours"],
    }


def _share(total: int, turn: int, rounds: int) -> range:
    """The part of 0..total-1 for one turn."""
    return range(total * turn // rounds, total * (turn + 1) // rounds)


def _check_same_answers(slow: list[tuple[range, np.ndarray]], fast: list[EpisodePredictions]):
    ours = np.concatenate([part.predicted_classes for part in fast])
    for share, answers in slow:
        compared = range(share.start, min(share.stop, len(ours)))
        differing = int((answers[: len(compared)] != ours[compared.start : compared.stop]).sum())
        if differing > 0.01 * answers.size:  # round-off may decide a tie
            raise RuntimeError(f"{differing} of {answers.size} answers differ between the loop and predict_episodes.")


def main(arguments: Arguments):
    if min(arguments.loop_episodes, arguments.pixel_episodes, arguments.n_episodes) < arguments.rounds:
        sys.exit(f"error: every turn needs at least one episode: lower --rounds {arguments.rounds}.")
    features = random_features(arguments)
    machine = (
        torch.cuda.get_device_name()
        if features.video_embeds.is_cuda
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    vision, num_videos, num_encoded = VISION[arguments.vision], len(features.labels), 8 * arguments.rounds
    print(f"{date.today()}, {machine}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(
        f"{arguments.n_episodes} {arguments.n_way}-way episodes, {arguments.n_query} query per class, over "
        f"{num_videos} videos of {arguments.num_classes} classes; {arguments.num_frames} frames of 512 features; "
        f"visual tower {arguments.vision} ({vision['image_size']} px). ~ is extrapolated: the loops from "
        f"{arguments.pixel_episodes} and {arguments.loop_episodes} episodes, encoding from {num_encoded} videos."
    )
    print("| shots | loop on pixels / s | encoding + ours / s | ratio | loop on embeddings / s | ours / s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for n_shot in arguments.n_shot:
        seconds = measure(arguments, features, n_shot)
        encoded = seconds["encoding"] + seconds["ours"]
        print(
            f"| {n_shot} | ~{seconds['pixels']:.0f} | ~{encoded:.0f} | {seconds['pixels'] / encoded:.0f} x | "
            f"~{seconds['embeddings']:.1f} | {seconds['ours']:.1f} | {seconds['embeddings'] / seconds['ours']:.1f} x |",
            flush=True,
        )
    if arguments.exact:
        stopwatch = Stopwatch()
        stopwatch("exact", exact_accuracy_of_videos, features, arguments.n_way)
        print(
            f"\nExact {arguments.n_way}-way 1-shot accuracy over the same videos: {stopwatch.seconds['exact']:.1f} s."
        )


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
