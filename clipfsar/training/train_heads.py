"""`clipfsar compare`: trains heads on cached features with several seeds if asked, then compares them."""

from pathlib import Path

from clipfsar.evaluation.arguments import CompareArguments
from clipfsar.evaluation.compare_heads import run as compare
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.program import run as train


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
        eval_every=max(4, arguments.train_episodes // 40 * 4),
        test_episodes=0,
        learning_rate=1e-4,  # the visual tower is frozen: new layers alone learn faster
        num_workers=arguments.num_workers,
        report_to="none",
        resume=True,
    )


def train_heads(arguments: CompareArguments) -> dict[str, list[str]]:
    """Folders of the best models of all trainings, one per seed, by their name in the table."""
    trained: dict[str, list[str]] = {}
    for alignment in arguments.train_heads:
        runs = [training_of(arguments, alignment, seed) for seed in range(arguments.train_seeds)]
        for one in runs:
            train(one)  # a finished training is only read
        trained[f"{alignment}, trained"] = [str(Path(one.output_dir) / "best") for one in runs]
    return trained


def main(arguments: CompareArguments):
    compare(arguments, train_heads(arguments))


__all__ = ["main", "train_heads", "training_of"]
