"""The cost of classifying a query among enrolled classes, compared with encoding it, as a Markdown table.

    python -m benchmarks.inference                          # ViT-B/32, 100 classes of 5 clips, some minutes on a CPU
    python -m benchmarks.inference --num_classes 1000

Weights and features are random; the cost does not depend on them. Every round times both encoding alone and encoding
with classification, so that a slow machine slows both. The program prints medians, and the median of the rounds'
ratios. "First" is the additional time of the first query: all prototypes (again after each change of the support set),
and the digest of the weights.
"""

import platform
import statistics
import time
from dataclasses import dataclass, field
from datetime import date

import torch
import transformers
from transformers import CLIPConfig

from clipfsar.options import parse_options
from configuration_clipfsar import CLIPFSARConfig
from fingerprint_clipfsar import model_digest
from modeling_clipfsar import CLIPFSARModel
from support_set_clipfsar import EnrolledClass, SupportSet

VISION = {"vit_b32": {}, "vit_b16": {"patch_size": 16}}  # the other sizes are transformers' defaults


@dataclass
class Arguments:
    vision: str = field(default="vit_b32", metadata={"help": "Visual tower.", "choices": list(VISION)})
    num_classes: int = field(default=100, metadata={"help": "Enrolled classes."})
    n_shot: int = field(default=5, metadata={"help": "Clips per class."})
    num_frames: int = field(default=8, metadata={"help": "Frames per video."})
    batch_size: int = field(default=1, metadata={"help": "Queries per batch."})
    rounds: int = field(default=15, metadata={"help": "Rounds, after one warm-up round."})


@torch.no_grad()
def main(arguments: Arguments):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip_config = CLIPConfig(vision_config=VISION[arguments.vision])
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=clip_config, num_frames=arguments.num_frames)).eval().to(device)
    size = model.config.hidden_size

    def seconds(function, *inputs) -> float:
        start = time.perf_counter()
        function(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    digest_seconds = seconds(model_digest, model)
    fingerprint = {"model": "random", "weights": model_digest(model), "dtype": "float32", "preprocessing": {}}
    clip_names = [str(number) for number in range(arguments.n_shot)]
    classes = {
        f"class {number}": EnrolledClass(
            torch.randn(size), clip_names, torch.randn(arguments.n_shot, arguments.num_frames, size)
        )
        for number in range(arguments.num_classes)
    }
    support_set = SupportSet(fingerprint, classes)
    pixel_values = torch.randn(arguments.batch_size, arguments.num_frames, 3, 224, 224, device=device)

    def encode_and_classify():
        support_set.classify(model, model.get_video_features(pixel_values), "ensemble").cpu()

    prototype_seconds = seconds(support_set.get_prototypes, model)
    encoding, both = [], []
    for turn in range(arguments.rounds + 1):
        # each of the two comes first in half of the rounds
        for function, times in ((model.get_video_features, encoding), (encode_and_classify, both))[:: (-1) ** turn]:
            times.append(seconds(function, *([pixel_values] if times is encoding else [])))
    encoding, both = encoding[1:], both[1:]
    ratio = statistics.median(whole / alone for whole, alone in zip(both, encoding, strict=True))
    print("| classes x clips | queries | encoding / ms | encoding and classifying / ms | ratio | first / ms |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {arguments.num_classes} x {arguments.n_shot} | {arguments.batch_size} | "
        f"{1000 * statistics.median(encoding):.1f} | {1000 * statistics.median(both):.1f} | {ratio:.3f} | "
        f"{1000 * prototype_seconds:.0f} + {1000 * digest_seconds:.0f} |"
    )
    print(
        f"\n{arguments.vision}, {arguments.num_frames} frames of 224 px, float32, {device}, {torch.get_num_threads()} "
        f"threads, {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{arguments.rounds} rounds, {date.today()}."
    )


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
