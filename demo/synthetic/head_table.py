"""Every way of comparing videos that needs no training, on the novel clips of both tracks, as Markdown tables.

    python -m demo.synthetic.head_table                     # some minutes on two cores
    python -m demo.synthetic.head_table --clips 10 --n_episodes 200         # a quick look

The features are the tiny CLIP's, unchanged. All ways answer the same episodes.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from clipfsar.evaluation.compare_heads import HeadComparison, compare_features
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.references import REFERENCES
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.options import parse_options
from demo.synthetic.track_classes import ORDER, WHAT, Track
from demo.synthetic.track_features import ClassClips, encode_class
from demo.synthetic.track_heads import frozen_head

HEADS = ("otam", "bi_mhm", "mean", "chamfer", *REFERENCES)


@dataclass
class Arguments:
    clips: int = field(default=25, metadata={"help": "Clips of each novel class."})
    n_episodes: int = field(default=2000, metadata={"help": "5-way episodes per number of shots."})
    num_threads: int = field(default=2, metadata={"help": "Threads on a CPU."})


def compare_on(track: Track, class_names: tuple[str, ...], arguments: Arguments) -> HeadComparison:
    """All heads without training, 1-shot and 5-shot, on clips of these classes of a track."""
    jobs = [ClassClips(name, arguments.clips, 0, track.distractor_size, 0) for name in class_names]
    videos, texts = (torch.from_numpy(np.stack(parts)) for parts in zip(*map(encode_class, jobs), strict=True))
    labels = np.repeat(np.arange(len(class_names)), arguments.clips)
    frames = videos.flatten(0, 2)  # one draw each
    contenders = {name: [SplitFeatures(frozen_head(name), frames, texts, labels)] for name in HEADS}
    return compare_features(contenders, Protocol(5, (1, 5), 1, arguments.n_episodes, 0, "few_shot"), list(class_names))


def main(arguments: Arguments):
    torch.set_num_threads(arguments.num_threads)
    for name, track in (("What", WHAT), ("Order", ORDER)):
        class_names = track.scopes(track.novel)[0]  # classes of one look where episodes share it
        print(f"\n{name}, {len(class_names)} novel classes of {arguments.clips} clips\n", flush=True)
        print(compare_on(track, class_names, arguments), flush=True)


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
