"""Few-shot accuracy of a model on a split: every video is encoded once, episodes then only align features.

    clipfsar evaluate --model runs/mine/best --dataset DATA --split test --n_shot 1 5 --output_dir results
    clipfsar evaluate --model runs/mine/best --dataset DATA --exact true               # 1-shot, all episodes
    clipfsar evaluate --model runs/mine/best --dataset DATA --n_shot 5 --until_interval 0.2
    clipfsar evaluate --model runs/b/best --compare_with runs/a/best --dataset DATA     # paired

Neither the frame features of a video nor its states as a query depend on the episode, nor does a 1-shot prototype: a
query passes the temporal transformer without a text, and a support video with that of its own class.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from choices_clipfsar import ALIGNMENTS, INFERENCE_MODES
from clipfsar.data.splits import load_video_splits
from clipfsar.evaluation.encoding import encode_classes, encode_videos
from clipfsar.evaluation.episode_list import EpisodeList, read_episodes, write_episodes
from clipfsar.evaluation.episodes import EpisodicAccuracy, predict_episodes, predict_until_interval, summarize
from clipfsar.evaluation.exact_accuracy import exact_accuracy_of_videos
from clipfsar.evaluation.feature_store import digest_of_videos, stored_features
from clipfsar.evaluation.report import (
    EpisodePredictions,
    compare,
    confusion_rates,
    expected_calibration_error,
    interval_over_videos,
    most_confused_pairs,
    per_class_accuracies,
    right_answers_per_video,
)
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.inference.quantized import DTYPES, quantize_int8
from clipfsar.options import parse_options
from clipfsar.plots import plot_confusion, plot_per_class
from episodes_clipfsar import EpisodeSampler, read_labels
from modeling_clipfsar import CLIPFSARModel
from processing_clipfsar import CLIPFSARProcessor


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Folder or Hub id of a CLIP-FSAR model (or of a plain CLIP, untrained)."})
    dataset: str = field(metadata={"help": "Folder or Hub id of a video data set."})
    split: str = field(default="test", metadata={"help": "Split to draw episodes from."})
    compare_with: str | None = field(
        default=None, metadata={"help": "Another model that answers the same episodes; the comparison is paired."}
    )
    n_way: int = field(default=5, metadata={"help": "Classes per episode."})
    n_shot: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Support videos per class; several."})
    n_query: int = field(default=1, metadata={"help": "Query videos per class."})
    n_episodes: int = field(default=10_000, metadata={"help": "Episodes per number of shots."})
    until_interval: float | None = field(
        default=None, metadata={"help": "Draw episodes until the 95%% interval is +- this many points, instead."}
    )
    exact: bool = field(default=False, metadata={"help": "1-shot: also the expectation over all episodes there are."})
    write_episodes: str | None = field(default=None, metadata={"help": "Write the episodes to this file (one n_shot)."})
    read_episodes: str | None = field(default=None, metadata={"help": "Take the episodes from this file instead."})
    seed: int = field(default=0, metadata={"help": "Seed of the episodes."})
    inference_modes: list[str] = field(
        default_factory=lambda: list(INFERENCE_MODES), metadata={"help": f"Any of {', '.join(INFERENCE_MODES)}."}
    )
    alignment: str | None = field(
        default=None, metadata={"help": "Another alignment than the model's.", "choices": list(ALIGNMENTS)}
    )
    feature_store: str | None = field(
        default=None, metadata={"help": "Folder to keep the frame features in, for the next time and after a kill."}
    )
    rebuild_features: bool = field(default=False, metadata={"help": "Replace a feature store of something else."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for results.json and pictures."})
    output_json: str | None = field(default=None, metadata={"help": "Write the results to this file."})
    batch_size: int = field(default=16, metadata={"help": "Videos per forward."})
    num_workers: int = field(default=2, metadata={"help": "Processes that decode videos."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Arithmetic of the whole model, as in clipfsar predict; int8: of the visual tower, on a CPU.",
            "choices": list(DTYPES),
        },
    )
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "Arithmetic of the visual tower on float32 weights.", "choices": ["no", "fp16", "bf16"]},
    )
    video_column: str = field(default="video", metadata={"help": "Column with the videos."})
    label_column: str = field(default="label", metadata={"help": "Column with the classes."})


class Evaluation:
    """A split, and what models have to say about it."""

    def __init__(self, arguments: Arguments):
        self.arguments = arguments
        unknown = sorted(set(arguments.inference_modes) - set(INFERENCE_MODES))
        if unknown:
            raise ValueError(f"--inference_modes {' '.join(unknown)}: there are {', '.join(INFERENCE_MODES)}.")
        if arguments.write_episodes and len(arguments.n_shot) > 1:
            raise ValueError(f"--write_episodes holds episodes of one --n_shot, not of {arguments.n_shot}.")
        if arguments.n_episodes < 1:
            raise ValueError(f"--n_episodes {arguments.n_episodes} must be at least 1.")
        if arguments.until_interval is not None and not arguments.until_interval > 0:
            raise ValueError(f"--until_interval {arguments.until_interval} must be greater than 0.")
        if arguments.dtype != "float32" and arguments.mixed_precision not in (None, "no"):
            raise ValueError(
                f"--dtype {arguments.dtype} and --mixed_precision {arguments.mixed_precision} both say in what "
                "precision the visual tower runs: give one of them."
            )
        for name in ("write_episodes", "until_interval"):
            if arguments.read_episodes is not None and getattr(arguments, name) is not None:
                raise ValueError(f"--read_episodes takes the episodes as they are: leave --{name} out.")
        # also several processes without a GPU
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available() or arguments.dtype == "int8",
            mixed_precision="no" if arguments.dtype != "float32" else arguments.mixed_precision,
        )
        splits = load_video_splits(arguments.dataset, arguments.video_column, arguments.label_column)
        if arguments.split not in splits:
            raise ValueError(f"{arguments.dataset} has no split {arguments.split!r}; it has {', '.join(splits)}.")
        self.dataset = splits[arguments.split]
        self.labels, self.class_names = read_labels(self.dataset, arguments.label_column)
        # Too few videos, or other ones, are found out before the encoding.
        self.videos_digest = digest_of_videos(self.dataset, arguments.video_column)
        if arguments.read_episodes is not None:
            episodes = read_episodes(arguments.read_episodes, self.videos_digest)
            self.samplers = {episodes.n_shot: episodes}
        else:
            self.samplers = {
                n_shot: EpisodeSampler(
                    self.labels, arguments.n_way, n_shot, arguments.n_query, arguments.seed, self.class_names
                )
                for n_shot in arguments.n_shot
            }
        if arguments.exact and 1 not in self.samplers:
            raise ValueError(f"--exact is about 1-shot episodes: add 1 to --n_shot {list(self.samplers)}.")
        self.n_episodes = {}  # per number of shots, once known: the model to compare with answers as many

    def answers(self, model_name: str) -> tuple[dict[int, dict[str, EpisodePredictions]], dict[str, torch.Tensor]]:
        """A model's answers per number of shots and mode, and the exact chances of each video per mode, if asked for.

        On the main process; the others only help to encode and get nothing.
        """
        arguments, accelerator = self.arguments, self.accelerator
        settings = {} if arguments.alignment is None else {"alignment": arguments.alignment}
        dtype = torch.float32 if arguments.dtype == "int8" else getattr(torch, arguments.dtype)
        model = CLIPFSARModel.from_pretrained(model_name, dtype=dtype, **settings).to(accelerator.device).eval()
        if arguments.dtype == "int8":
            quantize_int8(model)
        processor = CLIPFSARProcessor.from_pretrained(model_name)
        encoding = {
            "video_column": arguments.video_column,
            "batch_size": arguments.batch_size,
            "num_workers": arguments.num_workers,
            "description": f"encoding {arguments.split} videos",
        }
        if arguments.feature_store is None:
            video_embeds = encode_videos(model, processor, self.dataset, accelerator, **encoding)
        else:
            video_embeds = stored_features(
                Path(arguments.feature_store) / _file_name(model_name) / arguments.split,
                model,
                processor,
                self.dataset,
                accelerator,
                rebuild=arguments.rebuild_features,
                **encoding,
            )
        if not accelerator.is_main_process:
            return {}, {}
        class_embeds = encode_classes(model, processor, self.class_names)
        features = SplitFeatures(model, video_embeds, class_embeds, self.labels)
        answers = {n_shot: self._predict(sampler, features) for n_shot, sampler in self.samplers.items()}
        if arguments.write_episodes is not None:
            (n_shot,) = arguments.n_shot
            write_episodes(arguments.write_episodes, self.samplers[n_shot], self.n_episodes[n_shot], self.videos_digest)
        exact = {}
        if arguments.exact:
            exact = exact_accuracy_of_videos(features, self.samplers[1].n_way, arguments.inference_modes)
        return answers, exact

    def _predict(self, sampler: EpisodeSampler | EpisodeList, features: SplitFeatures) -> dict[str, EpisodePredictions]:
        arguments = self.arguments

        def predict(indices: Sequence[int]) -> dict[str, EpisodePredictions]:
            return predict_episodes(features, sampler, indices, arguments.inference_modes)

        n_episodes = self.n_episodes.get(sampler.n_shot)
        if n_episodes is not None:
            answers = predict(range(n_episodes))
        elif isinstance(sampler, EpisodeList):
            answers = predict(range(len(sampler)))
        elif arguments.until_interval is not None:
            answers = predict_until_interval(predict, arguments.until_interval)
        else:
            answers = predict(range(arguments.n_episodes))
        self.n_episodes[sampler.n_shot] = len(next(iter(answers.values())).class_ids)
        return answers

    def report(self, n_shot: int, mode: str, predictions: EpisodePredictions, exact: torch.Tensor | None) -> dict:
        """Everything that is said of a model's answers in one mode, ready for JSON; accuracies in percent."""
        num_classes = len(self.class_names)
        result = asdict(summarize(self.samplers[n_shot], mode, predictions))
        if exact is None:
            chances = right_answers_per_video(predictions, len(self.labels))
        else:
            chances = exact.numpy()
            result["exact_accuracy"] = 100 * float(_mean_over_classes(chances, self.labels))
        rates = confusion_rates(predictions, num_classes)
        result["interval_over_videos"] = interval_over_videos(chances, self.labels)
        result["calibration_error"] = expected_calibration_error(predictions)
        per_class = 100 * per_class_accuracies(predictions, num_classes)
        result["per_class_accuracy"] = dict(zip(self.class_names, per_class.tolist(), strict=True))
        result["most_confused"] = most_confused_pairs(rates, self.class_names)
        if self.arguments.output_dir is not None:
            folder = Path(self.arguments.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{result['n_way']}_way_{n_shot}_shot_{mode}"
            plot_confusion(rates, self.class_names, folder / f"confusion_{name}.png", _title(result))
            plot_per_class(result["per_class_accuracy"], folder / f"per_class_{name}.png", _title(result))
        return result


def main(arguments: Arguments) -> list[dict]:
    evaluation = Evaluation(arguments)
    answers, exact = evaluation.answers(arguments.model)
    others = evaluation.answers(arguments.compare_with)[0] if arguments.compare_with else {}
    results = []
    if evaluation.accelerator.is_main_process:
        print(f"{arguments.model} on {arguments.dataset}, split {arguments.split}, {len(evaluation.dataset)} videos:")
        for n_shot, modes in answers.items():
            for mode, predictions in modes.items():
                chances = exact.get(mode) if n_shot == 1 else None
                result = evaluation.report(n_shot, mode, predictions, chances)
                if others:
                    result["compared_with"] = arguments.compare_with
                    result["comparison"] = compare(others[n_shot][mode], predictions)
                results.append(result)
                print("\n".join(f"  {line}" for line in _lines(result)))
        paths = [arguments.output_json, arguments.output_dir and Path(arguments.output_dir) / "results.json"]
        for path in filter(None, paths):
            Path(path).write_text(json.dumps(_without_nan(results), indent=2, allow_nan=False) + "\n")
    evaluation.accelerator.end_training()
    return results


def _lines(result: dict) -> list[str]:
    """A result for people."""
    lines = [_title(result)]
    if "exact_accuracy" in result:
        lines.append(f"  over all episodes there are: {result['exact_accuracy']:.2f}% (exact)")
    lines.append(
        f"  were classes and videos drawn anew: ± {result['interval_over_videos']:.1f}; calibration error "
        f"{result['calibration_error']:.1f}%"
    )
    asked = [item for item in result["per_class_accuracy"].items() if not math.isnan(item[1])]
    classes = sorted(asked, key=lambda item: item[1])
    lines.append(f"  hardest classes: {', '.join(f'{name} {accuracy:.0f}%' for name, accuracy in classes[:3])}")
    confused = [f"{pair['true']} -> {pair['predicted']} {pair['rate']:.0f}%" for pair in result["most_confused"][:3]]
    if confused:
        lines.append(f"  most confused, when both are there: {', '.join(confused)}")
    if "comparison" in result:
        paired = result["comparison"]
        lines.append(
            f"  minus {result['compared_with']}: {paired['difference']:+.2f} ± {paired['interval']:.2f} points, "
            f"McNemar p = {paired['p_value']:.2g}"
        )
    return lines


def _title(result: dict) -> str:
    return str(EpisodicAccuracy(**{item.name: result[item.name] for item in fields(EpisodicAccuracy)}))


def _mean_over_classes(chances: np.ndarray, labels: np.ndarray) -> float:
    return np.mean([chances[labels == label].mean() for label in np.unique(labels[labels >= 0])])


def _without_nan(value):
    """JSON has no NaN: null stands for a number that there is not."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _file_name(model_name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in model_name.strip("/"))


if __name__ == "__main__":
    try:
        main(parse_options(Arguments, __doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
