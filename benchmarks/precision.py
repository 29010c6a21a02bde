"""Time, weights and answers in float32, bfloat16 and int8 on this CPU, as a Markdown table.

    python -m benchmarks.precision                                       # tiny CLIP, untrained OTAM; time of ViT-B/32
    python -m benchmarks.precision --model demo_output/run/best --vision vit_b16

Accuracy is measured with `--model` on the novel synthetic clips, which are rendered here: 5-way 1-shot, the same
episodes in every precision, so that differences are paired. "Videos that change their answer" counts queries. Time is
the time to encode one video with a visual tower of CLIP's real size. Its weights are random; the cost does not depend
on them. All precisions take turns in one process. A time is the median over rounds, a ratio the median of the rounds'
ratios. "Weights" are those of this visual tower.
"""

import io
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers import CLIPConfig
from transformers.utils import logging as transformers_logging

from clipfsar.data.splits import load_video_splits
from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.report import EpisodePredictions, compare, half_interval
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.inference.load_model import load_model
from clipfsar.inference.quantized import quantize_int8
from clipfsar.options import parse_options
from configuration_clipfsar import INFERENCE_MODES, CLIPFSARConfig
from demo.synthetic import TINY_CLIP
from demo.synthetic.render import render_dataset
from episodes_clipfsar import EpisodeSampler, read_labels
from modeling_clipfsar import CLIPFSARModel
from support_set_clipfsar import encode_class_names

DTYPES = ("float32", "bfloat16", "int8")
VISION = {"vit_b32": {}, "vit_b16": {"patch_size": 16}}  # the other sizes are transformers' defaults


@dataclass
class Arguments:
    model: str = field(default=str(TINY_CLIP), metadata={"help": "CLIP-FSAR model or plain CLIP, for accuracy."})
    vision: str = field(default="vit_b32", metadata={"help": "Visual tower, for time.", "choices": list(VISION)})
    inference_mode: str = field(default="few_shot", metadata={"help": "Tested mode.", "choices": list(INFERENCE_MODES)})
    n_episodes: int = field(default=5000, metadata={"help": "5-way 1-shot episodes."})
    videos_per_class: int = field(default=20, metadata={"help": "Clips of each of the 12 novel classes."})
    num_frames: int = field(default=8, metadata={"help": "Frames per video, for time."})
    rounds: int = field(default=9, metadata={"help": "Turns of each precision, after one warm-up turn."})
    seed: int = field(default=0, metadata={"help": "Seed of clips and episodes."})


def answers(arguments: Arguments) -> dict[str, EpisodePredictions]:
    """Answers to the same episodes in each precision; every clip is read once."""
    models = {dtype: load_model(arguments.model, dtype) for dtype in DTYPES}
    processor = models["float32"][1]
    with tempfile.TemporaryDirectory() as folder:
        counts = {"train": 1, "validation": 1, "test": arguments.videos_per_class}
        render_dataset(folder, counts, seed=arguments.seed)
        split = load_video_splits(folder)["test"]
        labels, class_names = read_labels(split)
        embeds = {dtype: [] for dtype in DTYPES}
        for video in tqdm(split["video"], "encoding", leave=False):
            pixel_values = processor.process_videos([video])
            for dtype, (model, _) in models.items():
                embeds[dtype].append(model.get_video_features(pixel_values).float())
    sampler = EpisodeSampler(labels, n_way=5, n_shot=1, n_query=1, seed=arguments.seed, class_names=class_names)
    predictions = {}
    for dtype, (model, _) in models.items():
        class_embeds = encode_class_names(model, processor, class_names)
        features = SplitFeatures(model, torch.cat(embeds[dtype]), class_embeds, labels)
        modes = [arguments.inference_mode]
        predictions |= {dtype: predict_episodes(features, sampler, range(arguments.n_episodes), modes)[modes[0]]}
    return predictions


def encoding_times(arguments: Arguments) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds of every round, and megabytes of the visual tower's weights, for each precision."""
    clip_config = CLIPConfig(vision_config=VISION[arguments.vision])
    config = CLIPFSARConfig(clip_config=clip_config, num_frames=arguments.num_frames)
    models, megabytes = {}, {}
    for dtype in DTYPES:
        torch.manual_seed(arguments.seed)
        model = CLIPFSARModel(config).eval()
        models[dtype] = quantize_int8(model) if dtype == "int8" else model.to(getattr(torch, dtype))
        file = io.BytesIO()
        torch.save(model.clip.vision_model.state_dict(), file)
        megabytes[dtype] = file.tell() / 1e6
    pixel_values = torch.randn(1, arguments.num_frames, 3, 224, 224)
    times = {dtype: [] for dtype in DTYPES}
    for turn in range(arguments.rounds + 1):
        for dtype in DTYPES[:: (-1) ** turn]:
            start = time.perf_counter()
            models[dtype].get_video_features(pixel_values)
            if turn:
                times[dtype].append(1000 * (time.perf_counter() - start))
    return times, megabytes


@torch.no_grad()
def main(arguments: Arguments):
    transformers_logging.set_verbosity_error()
    predictions = answers(arguments)
    times, megabytes = encoding_times(arguments)
    print(
        "| precision | accuracy / % | minus float32 / points | videos that change their answer / % | "
        "encoding a video / ms | ratio | weights / MB |\n|---|---|---|---|---|---|---|"
    )
    exact = predictions["float32"]
    for dtype, given in predictions.items():
        accuracies = 100 * given.accuracies
        paired = compare(exact, given)
        changed = 100 * np.mean(given.predicted_classes != exact.predicted_classes)
        ratio = statistics.median(mine / theirs for mine, theirs in zip(times[dtype], times["float32"], strict=True))
        is_exact = dtype == "float32"
        print(
            f"| {dtype} | {accuracies.mean():.2f} ± {half_interval(accuracies):.2f} | "
            f"{'' if is_exact else '{difference:+.2f} ± {interval:.2f}'.format(**paired)} | "
            f"{'' if is_exact else f'{changed:.2f}'} | "
            f"{statistics.median(times[dtype]):.0f} | {ratio:.2f} | {megabytes[dtype]:.0f} |"
        )
    print(
        f"\n{arguments.model}, {arguments.n_episodes} episodes, {arguments.inference_mode}, seed {arguments.seed}; "
        f"{arguments.vision}, {arguments.num_frames} frames of 224 px, {arguments.rounds} rounds, "
        f"{torch.get_num_threads()} threads, {_processor_name()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {date.today()}."
    )


def _processor_name() -> str:
    """The processor, with its instructions for low precision if the system lists them."""
    flags = Path("/proc/cpuinfo")
    known = set(flags.read_text().split()) if flags.is_file() else set()
    found = [
        name for name in ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if name in known
    ]
    return f"{platform.machine()} ({', '.join(found) or 'features unknown'})"


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
