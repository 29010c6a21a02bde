"""`clipfsar compare`: trains heads on cached features with several seeds if asked, then compares them."""

import json
from dataclasses import replace
from pathlib import Path

from clipfsar.evaluation.arguments import EPISODES_PER_UPDATE, CompareArguments
from clipfsar.evaluation.compare_heads import run as compare
from clipfsar.inference.load_model import load_model
from clipfsar.json_files import read_json
from clipfsar.training.arguments import PROCESSOR_SETTINGS, EpisodicTrainingArguments
from clipfsar.training.program import run as train
from fingerprint_clipfsar import fingerprint_of
from paths_clipfsar import replace_file
from processing_clipfsar import CLIPFSARProcessor

FIRST_MODEL = "first_model.json"  # beside the trainings: the weights and frames that they started from


def training_of(arguments: CompareArguments, alignment: str, seed: int) -> EpisodicTrainingArguments:
    """The training of a head with one seed. A seed draws the same episodes for every head."""
    folder = Path(arguments.output_dir or "") / "trained"
    return EpisodicTrainingArguments(
        dataset=arguments.dataset,
        model=arguments.models[0],
        output_dir=str(folder / alignment / f"seed_{seed}"),
        features_dir=str(folder / "features"),
        freeze_vision=True,
        alignment=alignment,
        seed=seed,
        n_way=arguments.n_way,
        n_shot=arguments.n_shot,
        episodes=arguments.train_episodes,
        episodes_per_update=EPISODES_PER_UPDATE,
        eval_every=EPISODES_PER_UPDATE * max(1, arguments.train_episodes // 40),
        test_episodes=0,
        learning_rate=1e-4,  # the visual tower is frozen: new layers alone learn faster
        num_workers=arguments.num_workers,
        report_to="none",
        resume=True,
    )


def check_first_model(arguments: CompareArguments) -> CLIPFSARProcessor:
    """Checks that the trainings in the output folder started from the first model as it is now; its processor.

    Trainings are not repeated, so without this check a model that was trained anew would meet heads of the old one.

    Raises:
        ValueError: When it has other weights, or reads videos or class names differently.
    """
    model, processor = load_model(arguments.models[0])
    folder = Path(arguments.output_dir or "") / "trained"
    path, now = folder / FIRST_MODEL, fingerprint_of(model, processor)
    del now["model"]  # its name; the trainings compare it
    if path.is_file():
        before = read_json(path, f"delete {folder}, and the heads are trained again")
        different = [name for name in now if before.get(name) != now[name]]
        if different:
            raise ValueError(
                f"The heads in {folder} were trained from another model than {arguments.models[0]} is now (different: "
                f"{', '.join(different)}): name another --output_dir, or delete {folder}, and they are trained again."
            )
    elif not any(folder.glob("*/seed_*/best")):  # an earlier version did not record what its trainings started from
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as partial:
            partial.write_text(json.dumps(now, indent=2) + "\n")
    return processor


def train_heads(arguments: CompareArguments) -> dict[str, list[str]]:
    """Folders of the best models of all trainings, one per seed, by their name in the table."""
    trained: dict[str, list[str]] = {}
    if not arguments.train_heads:
        return trained
    processor = check_first_model(arguments)
    # The table is made on this processor's frames, so the heads are trained on them too. Features have no augmentation.
    frames = {name: getattr(processor, name) for name in PROCESSOR_SETTINGS} | {"query_augmentation": "none"}
    for alignment in arguments.train_heads:
        runs = [replace(training_of(arguments, alignment, seed), **frames) for seed in range(arguments.train_seeds)]
        for one in runs:
            train(one)  # a finished training is only read
        trained[f"{alignment}, trained"] = [str(Path(one.output_dir) / "best") for one in runs]
    return trained


def main(arguments: CompareArguments):
    compare(arguments, train_heads(arguments))


__all__ = ["main", "train_heads", "training_of"]
