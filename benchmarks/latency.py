"""The latency of one answer: a clip through the whole pipeline, and through its parts, as a Markdown table.

    python -m benchmarks.latency                        # ViT-B/32, a clip of 10 s, 5 classes of 5 clips
    python -m benchmarks.latency --vision vit_b16 --rounds 30

The parts are: decoding the sampled frames; resizing, cropping and normalising them; the visual tower; and everything
after it (temporal transformer, distances to the prototypes, logits, the sorted answer). Every round times both the
parts and the whole pipeline. The clips differ in their distance between key frames: the longer it is, the more frames
must be decoded before a sampled one. Weights are random; the cost does not depend on them.
"""

import itertools
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTokenizer

from benchmarks.data_loading import render
from clipfsar.options import parse_options
from configuration_clipfsar import CLIPFSARConfig
from demo.synthetic import TINY_CLIP
from modeling_clipfsar import CLIPFSARModel
from pipeline_clipfsar import FewShotVideoClassificationPipeline
from processing_clipfsar import CLIPFSARProcessor, read_video_frames, sample_frame_indices

VISION = {"vit_b32": {}, "vit_b16": {"patch_size": 16}}  # the other sizes are transformers' defaults
PARTS = ("decode", "preprocess", "encode", "align")


@dataclass
class Arguments:
    vision: str = field(default="vit_b32", metadata={"help": "Visual tower.", "choices": list(VISION)})
    num_frames: int = field(default=8, metadata={"help": "Frames per video."})
    num_classes: int = field(default=5, metadata={"help": "Enrolled classes."})
    n_shot: int = field(default=5, metadata={"help": "Clips per class."})
    gop_sizes: list[int] = field(default_factory=lambda: [250, 25], metadata={"help": "Frames between key frames."})
    num_threads: int | None = field(default=None, metadata={"help": "Threads on a CPU; by default torch's choice."})
    rounds: int = field(default=20, metadata={"help": "Rounds, after one warm-up round."})


def make_pipeline(arguments: Arguments) -> FewShotVideoClassificationPipeline:
    """A pipeline with random weights and classes enrolled from noise."""
    torch.manual_seed(0)
    clip_config = CLIPConfig(vision_config=VISION[arguments.vision])
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=clip_config, num_frames=arguments.num_frames))
    tokenizer = CLIPTokenizer.from_pretrained(TINY_CLIP)
    processor = CLIPFSARProcessor(CLIPImageProcessor(), tokenizer, num_frames=arguments.num_frames)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classify = FewShotVideoClassificationPipeline(model, processor, device=device)

    def noise() -> torch.Tensor:
        return torch.randint(0, 256, (arguments.num_frames, 224, 224, 3), dtype=torch.uint8)

    classify.enroll({f"class {n}": [noise() for _ in range(arguments.n_shot)] for n in range(arguments.num_classes)})
    return classify


@torch.no_grad()
def seconds_of_parts(classify: FewShotVideoClassificationPipeline, path: str) -> list[float]:
    """Duration of each of `PARTS`, one after the other on the same clip."""
    model, processor, support_set = classify.model, classify.processor, classify.support_set
    times = [_now()]
    frames = read_video_frames(
        path, lambda num_video_frames, _: sample_frame_indices(num_video_frames, processor.num_frames)
    )
    times.append(_now())
    pixel_values = processor.process_videos([frames])  # already sampled, so it uses all frames
    times.append(_now())
    query_embeds = model.get_video_features(pixel_values.to(model.device))
    times.append(_now())
    logits = support_set.classify(model, query_embeds).cpu()
    processor.post_process_video_classification(logits, support_set.class_names, top_k=5)
    times.append(_now())
    return [end - start for start, end in itertools.pairwise(times)]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: Arguments):
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    classify = make_pipeline(arguments)
    with tempfile.TemporaryDirectory() as folder:
        clips = {gop_size: f"{folder}/{gop_size}.mp4" for gop_size in arguments.gop_sizes}
        for gop_size, path in clips.items():
            render(Path(path), gop_size, seed=0)
        parts, whole = ({gop_size: [] for gop_size in clips} for _ in range(2))
        for turn in range(arguments.rounds + 1):
            for gop_size, path in clips.items():
                for parts_now in (True, False)[:: (-1) ** turn]:  # each comes first in half of the rounds
                    if parts_now:
                        parts[gop_size].append(seconds_of_parts(classify, path))
                        continue
                    start = _now()
                    classify(path)
                    whole[gop_size].append(_now() - start)
    columns = (*PARTS, "sum of the parts", "pipeline call", "share of the parts")
    print(f"| key frame every | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for gop_size in clips:
        of_parts, of_whole = parts[gop_size][1:], whole[gop_size][1:]
        milliseconds = [1000 * statistics.median(durations) for durations in zip(*of_parts, strict=True)]
        milliseconds.append(1000 * statistics.median(map(sum, of_parts)))
        milliseconds.append(1000 * statistics.median(of_whole))
        share = statistics.median(sum(one) / call for one, call in zip(of_parts, of_whole, strict=True))
        cells = [f"{value:.1f} ms" for value in milliseconds]
        print(f"| {gop_size} frames | {' | '.join(cells)} | {share:.0%} |")
    print(
        f"\nClip of 10 s, 320 x 240, 25 fps, H.264; {arguments.vision}, {arguments.num_frames} frames of 224 px, "
        f"float32; {arguments.num_classes} classes of {arguments.n_shot} clips; {classify.device.type}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {arguments.rounds} rounds, {date.today()}."
    )


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
