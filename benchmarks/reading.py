"""Reading sampled frames, compared with bare decoders; and preprocessing, compared with transformers' image processor.

    python -m benchmarks.reading                       # rendered clips: 320 x 240, 250 frames, H.264
    python -m benchmarks.reading --videos FOLDER       # your own: FOLDER/CLASS/VIDEO

"Bare" is the shortest program that reads frames with a decoder: open the file, ask for the number of frames, choose
frames, read them. Ours also lists the packets of the file to know which frames it shows, and checks that it got them.
`seconds_per_video=60` does this in a process that can be killed. All take turns, video by video, on one thread. The
ratio to bare decord is the median over rounds, with the smallest and the largest. Missing decoders are left out.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPTokenizer

from benchmarks.data_loading import NUM_FRAMES, render
from choices_clipfsar import DECODERS
from clipfsar.data.sources import folder_splits
from clipfsar.options import parse_options
from decoding_clipfsar import PyAVReader, load_decoder
from demo.synthetic import TINY_CLIP
from processing_clipfsar import CLIPFSARProcessor
from video_clipfsar import read_video_frames, sample_frame_indices


@dataclass
class Arguments:
    videos: str | None = field(default=None, metadata={"help": "Folder CLASS/VIDEO of real clips; default: rendered."})
    num_videos: int = field(default=8, metadata={"help": "Videos to read."})
    rounds: int = field(default=5, metadata={"help": "Turns of each program, after one warm-up turn."})


def choose(num_video_frames: int, fps: float | None = None) -> list[int]:
    return sample_frame_indices(num_video_frames, NUM_FRAMES)


def bare_decord(path: str) -> torch.Tensor:
    reader = load_decoder("decord")[0].VideoReader(path, num_threads=1)
    return torch.from_numpy(reader.get_batch(choose(len(reader))).asnumpy())


def bare_torchcodec(path: str) -> torch.Tensor:
    decoders = load_decoder("torchcodec")[0]
    decoder = decoders.VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC")
    return decoder.get_frames_at(indices=choose(decoder.metadata.num_frames)).data


def bare_av(path: str) -> torch.Tensor:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = choose(stream.frames)
        frames = []
        for number, frame in enumerate(container.decode(stream)):
            if number == wanted[len(frames)]:
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == len(wanted):
                    break
    return torch.from_numpy(np.stack(frames))


BARE = {"decord": bare_decord, "torchcodec": bare_torchcodec, "av": bare_av}


def seconds_in_turns(programs: list[Callable], inputs: list, rounds: int) -> list[list[float]]:
    """Seconds of each program for all inputs, in each round; the programs take turns input by input."""
    seconds = [[0.0] * rounds for _ in programs]
    for turn in range(rounds + 1):
        for item in inputs:
            for program, durations in zip(programs, seconds, strict=True):
                start = time.perf_counter()
                program(item)
                if turn:  # the first round warms up
                    durations[turn - 1] += time.perf_counter() - start
    return seconds


def compare_decoders(files: dict[str, list[str]], rounds: int):
    programs = {f"{name}, bare": program for name, program in BARE.items() if load_decoder(name)[0] is not None}
    programs |= {
        f"ours, {name}": lambda path, name=name: read_video_frames(path, choose, name)
        for name in ("auto", *DECODERS)
        if name == "auto" or load_decoder(name)[0] is not None
    }
    programs["ours, auto, seconds_per_video=60"] = lambda path: read_video_frames(path, choose, seconds_per_video=60)
    programs["ours, list of packets only"] = lambda path: PyAVReader(path).close()
    print("| files | program | sampled frames/s | time relative to bare decord |\n|---|---|---|---|")
    for title, paths in files.items():
        if not all(torch.equal(BARE["av"](path), read_video_frames(path, choose)) for path in paths):
            print(f"({title}: bare PyAV trusts the frame count in the file, and reads other frames than ours.)")
        seconds = dict(zip(programs, seconds_in_turns(list(programs.values()), paths, rounds), strict=True))
        base = seconds.get("decord, bare", seconds["av, bare"])
        for name, durations in seconds.items():
            rate = NUM_FRAMES * len(paths) / statistics.median(durations)
            ratios = sorted(own / bare for own, bare in zip(durations, base, strict=True))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"| {title} | {name} | {rate:.0f} | {spread} |", flush=True)


def compare_preprocessing(rounds: int):
    size = {"height": 224, "width": 224}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=size)
    tokenizer = CLIPTokenizer.from_pretrained(TINY_CLIP)
    processors = {
        name: CLIPFSARProcessor(image_processor, tokenizer, preprocessing=name) for name in ("clip", "official")
    }
    rng = np.random.default_rng(0)
    clips = [torch.from_numpy(rng.integers(0, 256, (NUM_FRAMES, 240, 320, 3), dtype=np.uint8)) for _ in range(30)]
    programs = {
        "transformers' image processor (PIL)": lambda clip: image_processor(
            [Image.fromarray(frame.numpy()) for frame in clip], return_tensors="pt"
        ),
        "ours, `clip`": lambda clip: processors["clip"].process_videos([clip]),
        "ours, `official`": lambda clip: processors["official"].process_videos([clip]),
    }
    seconds = seconds_in_turns(list(programs.values()), clips, rounds)
    print("| 320 x 240 to 224 px: resize, crop, normalise | frames/s on one core | ratio |\n|---|---|---|")
    for name, durations in zip(programs, seconds, strict=True):
        rate = NUM_FRAMES * len(clips) / statistics.median(durations)
        ratio = statistics.median(base / own for base, own in zip(seconds[0], durations, strict=True))
        print(f"| {name} | {rate:.0f} | {ratio:.1f} x |")


def main(arguments: Arguments):
    torch.set_num_threads(1)
    print(
        f"{date.today()}, {platform.machine()} CPU, one thread, torch {torch.__version__}; {NUM_FRAMES} frames a video"
    )
    with tempfile.TemporaryDirectory() as folder:
        if arguments.videos:
            clips = [clip.path for split in folder_splits(Path(arguments.videos)).values() for clip in split]
            files = {"your files": clips[: arguments.num_videos]}
        else:
            files = {}
            for gop_size in (250, 12):
                paths = [f"{folder}/{gop_size}_{number}.mp4" for number in range(arguments.num_videos)]
                for number, path in enumerate(paths):
                    render(Path(path), gop_size, number)
                files[f"H.264, key frame every {gop_size}"] = paths
        compare_decoders(files, arguments.rounds)
    print()
    compare_preprocessing(arguments.rounds)


if __name__ == "__main__":
    main(parse_options(Arguments, __doc__))
