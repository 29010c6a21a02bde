"""Few-shot accuracy of a model on a split, from Python (`evaluate_episodes`) and as `clipfsar evaluate`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from choices_clipfsar import (
    ALIGNMENTS,
    INFERENCE_MODES,
    TRAINED_ALIGNMENTS,
    check_finite,
    check_finite_weights,
    normalized_class_name,
)
from class_texts_clipfsar import check_class_prompts
from clipfsar.data.splits import check_split, load_video_splits
from clipfsar.data.tables import read_class_texts
from clipfsar.data.video_split import VideoSplit
from clipfsar.evaluation.arguments import RESULTS, EvaluateArguments
from clipfsar.evaluation.encoding import VideoEncoder
from clipfsar.evaluation.episode_list import EpisodeList, read_episodes, write_episodes
from clipfsar.evaluation.episodes import predict_episodes, predict_until_interval, results_of_answers
from clipfsar.evaluation.exact_accuracy import check_has_exact_accuracy, exact_accuracy_of_videos
from clipfsar.evaluation.feature_store import FeatureStore
from clipfsar.evaluation.protocol import Protocol
from clipfsar.evaluation.report import compare, interval_over_videos
from clipfsar.evaluation.results import EvaluationResults
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.inference.load_model import load_model
from clipfsar.json_files import DamagedFileError, read_json
from clipfsar.processes import machines_first
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel
from paths_clipfsar import check_output_file, local_path
from processing_clipfsar import CLIPFSARProcessor

TRAINING_ARGUMENTS = "training_arguments.json"  # in a model's folder


def evaluate_episodes(
    model: CLIPFSARModel,
    processor: CLIPFSARProcessor,
    dataset,
    n_way: int = 5,
    n_shot: int | Sequence[int] = (1, 5),
    n_query: int = 1,
    n_episodes: int = 10_000,
    seed: int = 0,
    inference_modes: str | Sequence[str] = INFERENCE_MODES,
    *,
    exact: bool = False,
    until_interval: float | None = None,
    compare_with: tuple[CLIPFSARModel, CLIPFSARProcessor] | None = None,
    feature_store: str | Path | None = None,
    accelerator: Accelerator | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
) -> EvaluationResults:
    """Few-shot accuracy. Every video is encoded once; episodes then only align features.

        results = evaluate_episodes(model, processor, splits["test"], n_way=5, n_shot=[1, 5], n_episodes=10_000)
        print(results)  # a line per number of shots and inference mode
        results[0].accuracy, results[0].interval, results[0].per_class, results[0].confusion

    Args:
        model, processor: A model and its processor. The model is not changed and stays on its device.
        dataset: A `datasets.Dataset` with the columns `video` and `label`, or a `VideoSplit` with other columns.
        n_way, n_shot, n_query, n_episodes, seed, inference_modes: See `Protocol`.
        exact: Also compute the expected accuracy over all possible 1-shot episodes, `result.exact`.
        until_interval: Draw episodes until every 95% interval is +- this many points or narrower, instead of
            `n_episodes`.
        compare_with: Another model with its processor; it answers the same episodes, see `result.comparison`.
        feature_store: Folder that keeps the frame features of each model for later evaluations.
        accelerator, batch_size, num_workers: See `VideoEncoder`.

    Returns:
        A list of results, the same on every process. You can print it or convert it to JSON or pandas.

    Raises:
        ValueError: When the split has too few classes or videos for the protocol; the message has the numbers. For a
            `compare_with` that is no pair.
    """
    protocol = Protocol(n_way, n_shot, n_query, n_episodes, seed, inference_modes)
    evaluation = Evaluation(VideoSplit.of(dataset), protocol, exact, until_interval)
    accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
    models = [(model, processor), *([_pair(compare_with)] if compare_with is not None else [])]
    encoders = [VideoEncoder(*one, accelerator, batch_size, num_workers, seed) for one in models]
    names = [getattr(encoder.model, "name_or_path", "") or "a model made in memory" for encoder in encoders]
    if len(set(names)) < len(names):
        names[1] += " (2)"
    stores = [
        encoder
        if feature_store is None
        else FeatureStore(_store_folder(feature_store, name, evaluation.split), encoder)
        for name, encoder in zip(names, encoders, strict=True)
    ]
    return evaluation.run(stores[0], stores[1] if len(stores) > 1 else None, names[-1])


def _pair(compare_with: Any) -> tuple[CLIPFSARModel, CLIPFSARProcessor]:
    if not (isinstance(compare_with, tuple | list) and len(compare_with) == 2):
        given = type(compare_with).__name__
        raise ValueError(f"compare_with is a pair, not {given}: give the other model and its processor.")
    model, processor = compare_with
    return model, processor


class Evaluation:
    """Episodes of a split for one or two models to answer.

    Args:
        split: The videos.
        protocol: The episodes and the inference modes.
        exact: Also evaluate all 1-shot episodes in closed form.
        until_interval: Draw episodes until this interval is reached (points), instead of the protocol's number.
        episodes: A fixed list of episodes, with one number of shots, instead of drawn ones.

    Raises:
        ValueError: When the split has too few classes or videos, or `exact` is given without 1-shot episodes.
    """

    def __init__(
        self,
        split: VideoSplit,
        protocol: Protocol,
        exact: bool = False,
        until_interval: float | None = None,
        episodes: EpisodeList | None = None,
    ):
        self.split, self.protocol, self.exact, self.until_interval = split, protocol, exact, until_interval
        # The samplers raise an error for too few videos, before anything is encoded.
        self.samplers = protocol.samplers(split) if episodes is None else {episodes.n_shot: episodes}
        if exact and 1 not in self.samplers:
            raise ValueError(f"exact is about 1-shot episodes: add 1 to n_shot={list(self.samplers)}.")
        # Per number of shots, once known: the second model answers the same number.
        self.n_episodes: dict[int, int] = {}

    def run(
        self,
        encoder: VideoEncoder | FeatureStore,
        other: VideoEncoder | FeatureStore | None = None,
        name: str | None = None,
    ) -> EvaluationResults:
        """Results of a model, compared with a second model called `name` if given; the same on every process."""
        results = self._results(encoder)
        if other is not None:
            results_of_other = self._results(other)
            if results is not None and results_of_other is not None:  # on the main process
                self._compare(results, results_of_other, name)
        (results,) = broadcast_object_list([results])
        return results

    def _compare(self, results: EvaluationResults, results_of_other: EvaluationResults, name: str | None):
        for position, (result, theirs) in enumerate(zip(results, results_of_other, strict=True)):
            comparison = compare(theirs.predictions, result.predictions)
            differences = result.right_per_video - theirs.right_per_video
            comparison["interval_over_videos"] = interval_over_videos(differences, result.labels)
            if self.exact and result.n_shot == 1:
                comparison["exact_difference"] = result.exact - theirs.exact
            results[position] = replace(result, compared_with=name, comparison=comparison)

    def _results(self, encoder: VideoEncoder | FeatureStore) -> EvaluationResults | None:
        """Results on the main process, None on the others, which help to encode and with the exact accuracy."""
        videos = encoder
        encoder = videos.encoder if isinstance(videos, FeatureStore) else videos
        if self.exact:
            check_has_exact_accuracy(encoder.model)
        split = self.split
        check_class_prompts(encoder.processor, split.class_names)  # rejects names of equal text before any encoding
        video_embeds = videos.encode(split, description=f"encoding {split.name} videos")
        is_main, is_exact = encoder.accelerator.is_main_process, self.exact and 1 in self.samplers
        if not is_main and not is_exact:
            return None
        class_embeds = encoder.encode_classes(split.class_names)
        # Without these checks NaN would count as an answer: always the first class.
        check_finite_weights(encoder.model)
        check_finite("The frame features", video_embeds, [f"video {row}" for row in range(len(split))])
        check_finite("The text features", class_embeds, split.class_names)
        features = SplitFeatures(encoder.model, video_embeds, class_embeds, split.labels)
        # All processes share this work, so it comes before what only the main process does.
        chances = self._exact_chances(features, encoder.accelerator) if is_exact else None
        if not is_main:
            return None
        results = EvaluationResults(protocol=self.protocol)
        for n_shot, sampler in self.samplers.items():
            answers = self._answers(sampler, features)
            given = (answers, sampler, split.labels, split.class_names)
            results += results_of_answers(*given, chances if n_shot == 1 else None)
        return results

    def _answers(self, sampler, features: SplitFeatures) -> dict:
        def predict(indices: Sequence[int]) -> dict:
            return predict_episodes(features, sampler, indices, self.protocol.inference_modes)

        n_episodes = self.n_episodes.get(sampler.n_shot)
        if n_episodes is not None:
            answers = predict(range(n_episodes))
        elif isinstance(sampler, EpisodeList):
            answers = predict(range(len(sampler)))
        elif self.until_interval is not None:
            answers = predict_until_interval(predict, self.until_interval)
        else:
            answers = predict(range(self.protocol.n_episodes))
        self.n_episodes[sampler.n_shot] = len(next(iter(answers.values())).class_ids)
        return answers

    def _exact_chances(self, features: SplitFeatures, accelerator: Accelerator) -> dict:
        given = (features, self.samplers[1].n_way, self.protocol.inference_modes)
        chances = exact_accuracy_of_videos(*given, accelerator=accelerator)
        return {mode: values.numpy() for mode, values in chances.items()}


def warn_of_base_classes(model: str, class_names: Sequence[str]) -> None:
    """Warns when a model was trained on some of the classes. Models of earlier versions do not say on which."""
    path, remedy = local_path(model) / TRAINING_ARGUMENTS, "put back the file that belongs to the model"
    base_classes = read_json(path, remedy).get("base_classes", []) if path.is_file() else []
    if not isinstance(base_classes, list) or not all(isinstance(name, str) for name in base_classes):
        raise DamagedFileError(f"{path} is damaged (base_classes must be a list of names): {remedy}.")
    known = {normalized_class_name(name) for name in base_classes}
    seen = [name for name in class_names if normalized_class_name(name) in known]
    if seen:
        print(
            f"warning: {model} was trained on {len(seen)} of these {len(class_names)} classes, such as {seen[0]!r}: "
            "the accuracy is no few-shot result.",
            file=sys.stderr,
        )


def run(arguments: EvaluateArguments) -> EvaluationResults:
    """`clipfsar evaluate`: prints the results, and writes the files that the arguments name."""
    paths: list[str | Path] = [*_output_files(arguments)]
    for path in [*paths, arguments.write_episodes] if arguments.write_episodes else paths:
        check_output_file(path)  # before the work
    accelerator = _accelerator(arguments)
    split = _split(arguments, accelerator)
    given = (arguments.n_way, arguments.n_shot, arguments.n_query, arguments.n_episodes, arguments.seed)
    protocol = Protocol(*given, arguments.inference_modes)
    # A list of episodes about other videos is rejected here, before the encoding.
    episodes = read_episodes(arguments.read_episodes, split) if arguments.read_episodes is not None else None
    evaluation = Evaluation(split, protocol, arguments.exact, arguments.until_interval, episodes)
    encoder = _encoder(arguments.model, split, arguments, accelerator)
    other = _encoder(arguments.compare_with, split, arguments, accelerator) if arguments.compare_with else None
    if accelerator.is_main_process:
        for name in filter(None, (arguments.model, arguments.compare_with)):
            warn_of_base_classes(name, split.class_names)
    results = evaluation.run(encoder, other, arguments.compare_with)
    if accelerator.is_main_process:
        if arguments.write_episodes is not None:
            (n_shot,) = arguments.n_shot
            count = evaluation.n_episodes[n_shot]
            sampler: Any = evaluation.samplers[n_shot]  # not an EpisodeList: the arguments exclude each other
            write_episodes(arguments.write_episodes, sampler, count, split)
        _report(results, split, arguments)
    accelerator.end_training()
    return results


def encode(arguments: EvaluateArguments) -> None:
    """`clipfsar evaluate --encode_only`: fills the feature stores of the models, or one shard of them."""
    accelerator, task = _accelerator(arguments), arguments.task
    split = _split(arguments, accelerator)
    for name in filter(None, (arguments.model, arguments.compare_with)):
        store = _encoder(name, split, arguments, accelerator)
        assert isinstance(store, FeatureStore)  # the arguments name a folder
        description = f"encoding {split.name} videos"
        if task is None:
            told = f"all {len(store.encode(split, description=description)):,} {split.name} videos"
        else:
            told = f"{store.encode_shard(split, task, f'{description}, {task}'):,} {split.name} videos of {task}"
        if accelerator.is_main_process:
            print(f"{store.folder} holds the features of {told}.")
    if task is not None and accelerator.is_main_process:
        print("After the last shard, run the same command without --shard (in a Slurm array: --shard 0 1).")
    accelerator.end_training()


def main(arguments: EvaluateArguments):
    if arguments.encode_only:
        encode(arguments)
    else:
        run(arguments)


def _accelerator(arguments: EvaluateArguments) -> Accelerator:
    return Accelerator(
        cpu=not torch.accelerator.is_available() or arguments.dtype == "int8",
        mixed_precision="no" if arguments.dtype != "float32" else arguments.mixed_precision,
    )


def _split(arguments: EvaluateArguments, accelerator: Accelerator) -> VideoSplit:
    columns = (arguments.video_column, arguments.label_column)
    splits = machines_first(accelerator, lambda: load_video_splits(arguments.dataset, *columns))
    check_split(arguments.dataset, arguments.split, splits)
    return VideoSplit(splits[arguments.split], *columns, arguments.split)


def _encoder(
    name: str, split: VideoSplit, arguments: EvaluateArguments, accelerator: Accelerator
) -> VideoEncoder | FeatureStore:
    """The `VideoEncoder` of a named model, in a `FeatureStore` if the arguments name one."""
    settings = {} if arguments.alignment is None else {"alignment": arguments.alignment}
    machines_first(accelerator, lambda: _check_is_trained(name, arguments.alignment))
    model, processor = machines_first(accelerator, lambda: load_model(name, arguments.dtype, **settings))
    model.to(accelerator.device)
    processor.seconds_per_video = arguments.seconds_per_video
    if arguments.class_texts is not None:
        processor.class_texts = read_class_texts(arguments.class_texts)
    cost = (arguments.batch_size, arguments.num_workers, arguments.seed)
    encoder = VideoEncoder(model, processor, accelerator, *cost)
    if arguments.feature_store is None:
        return encoder
    return FeatureStore(_store_folder(arguments.feature_store, name, split), encoder, arguments.rebuild_features)


def _check_is_trained(name: str, alignment: str | None) -> None:
    """Raises `ValueError` for an alignment whose weights a checkpoint does not hold."""
    if alignment in TRAINED_ALIGNMENTS:
        saved = CLIPFSARConfig.from_pretrained(name).alignment
        if saved != alignment:
            untrained = [one for one in ALIGNMENTS if one not in TRAINED_ALIGNMENTS]
            raise ValueError(
                f"--alignment {alignment} has weights of its own, but {name} was trained with {saved}: train a model "
                f"with --alignment {alignment}, or compare without training: {', '.join(untrained)}."
            )


def _report(results: EvaluationResults, split: VideoSplit, arguments: EvaluateArguments):
    print(f"{arguments.model} on {arguments.dataset}, split {arguments.split}, {len(split)} videos:")
    for result in results:
        print("\n".join(f"  {line}" for line in result.lines()))
    for path in _output_files(arguments):  # numbers first: an error while drawing must not lose them
        results.to_json(path)
    if arguments.output_dir is not None:
        results.plot(arguments.output_dir)


def _output_files(arguments: EvaluateArguments) -> list[Path]:
    folder = arguments.output_dir
    return [Path(path) for path in (folder and Path(folder) / RESULTS, arguments.output_json) if path]


def _store_folder(feature_store: str | Path, model_name: str, split: VideoSplit) -> Path:
    """Folder for one model's features of one split."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in model_name.strip("/"))
    return Path(feature_store) / name / split.name


__all__ = ["Evaluation", "encode", "evaluate_episodes", "main", "run"]
