"""Options that have no effect beside others: each is declared, shown by --help, and refused when given in vain."""

import json
import os
import typing
from dataclasses import asdict, dataclass, fields

import pytest

from clipfsar import cli
from clipfsar.option_conditions import alternatives, check_conditions, in_words, names_in
from clipfsar.options import make_parser, option, parse_options
from clipfsar.training.arguments import EpisodicTrainingArguments, parse_arguments

# Complete command lines. Together they leave out and set what the conditions of a command ask for.
LINES = {
    "train": ["--dataset d"],
    "prepare": [
        "--source folder --output_dir o",
        "--source clips.csv --output_dir o",
        "--official_splits l --video_root v --output_dir o",
        "--source folder --output_dir o --frame_size 32",
    ],
    "evaluate": ["--model m --dataset d", "--model m --dataset d --feature_store f"],
    "compare": ["--models m --dataset d", "--models m --dataset d --output_dir o"],
    "reproduce": ["hmdb51 --video_root v", "hmdb51 --dataset d", "hmdb51 --video_root v --frame_store none"],
    "predict": [
        "--model m --support_set s --query q",
        "--model m --query q",
        "--model m --support_set s --save_support_set o",
    ],
    "export": ["--model m --output_dir o --support_set s"],
    "convert": ["--clip_checkpoint c --output_dir o", "--checkpoint c --clip_checkpoint p --output_dir o"],
}
LINES["convert"].append("--model m --checkpoint c")
# Values that `sample` would get wrong
REFUSED = [("reproduce", "push_to_hub")]  # plays no part in a reproduction
SAMPLES = {"class_split": "2 1 1", "shard": "0 2", "lora_targets": "fc1", "seeds": "1 2", "formats": "onnx"}
SAMPLES |= {"inference_modes": "few_shot", "unknown_error_rate": "0.1", "video_address": "clips/{}", "video_root": "."}
SAMPLES |= {"train_episodes": "8"}  # of whole updates


def options_class(command: str) -> type:
    place = cli.COMMANDS[command].options.replace(":parse_arguments", "")
    names = {"train": "EpisodicTrainingArguments", "prepare": "PrepareArguments", "reproduce": "ReproduceArguments"}
    return cli._imported(f"{place}:{names[command]}" if ":" not in place else place)


def conditional(kind: str) -> list[tuple[str, str]]:
    """(command, option) of all options with a condition of this kind."""
    return [
        (command, item.name)
        for command in cli.COMMANDS
        for item in fields(options_class(command))
        if item.metadata.get(kind)
    ]


def sample(command: str, name: str) -> list[str]:
    """The option with a value that is not its default."""
    if name in SAMPLES:
        return [f"--{name}", *SAMPLES[name].split()]
    (item,) = [item for item in fields(options_class(command)) if item.name == name]
    kind = str(typing.get_type_hints(options_class(command))[name])
    if item.metadata.get("choices"):
        return [f"--{name}", str(item.metadata["choices"][-1])]
    if "bool" in kind:
        return [f"--{name}", "false" if item.default is True else "true"]
    return [f"--{name}", "7" if "int" in kind or "float" in kind else "some"]


def lines_with(command: str, one: list) -> list[list[str]]:
    """The complete command lines of a command, each also with the options that make the terms hold."""
    added = []
    for term in one:
        value = [f"--{term.name}", term.pattern.replace("*", "x")] if term.pattern else sample(command, term.name)
        added.append(value)
    lines = [line.split() for line in LINES[command]]
    for value in added:
        lines = [with_option(line, value) for line in lines]
    return lines


def with_option(line: list[str], value: list[str]) -> list[str]:
    return line if value[0] in line else [*line, *value]


def refusal(capsys, command: str, line: list[str]) -> str:
    """What the command's real parser answers; empty if it accepts the line."""
    try:
        cli._parse(command, list(line))
    except SystemExit:
        return capsys.readouterr().err
    return ""


@pytest.mark.parametrize(("command", "name"), conditional("needs"))
def test_an_option_without_what_it_needs_is_refused_and_with_it_accepted(capsys, command, name):
    (item,) = [item for item in fields(options_class(command)) if item.name == name]
    given = sample(command, name)
    refusals = [refusal(capsys, command, with_option(line.split(), given)) for line in LINES[command]]
    names = [f"--{other}" for other in names_in(item.metadata["needs"])]
    in_vain = [text for text in refusals if text.startswith(f"error: --{name} has no effect with")]
    in_vain = [text for text in in_vain if any(other in text for other in names)]
    assert in_vain, refusals
    remedies = (f"or leave --{name} out.\n", "leave one of them out.\n")
    assert all(text.count("\n") == 1 and text.endswith(remedies) for text in in_vain)
    for one in alternatives(item.metadata["needs"]):
        answers = [refusal(capsys, command, with_option(line, given)) for line in lines_with(command, one)]
        assert "" in answers or (command, one[0].name) in REFUSED, answers


@pytest.mark.parametrize(("command", "name"), conditional("unused_with"))
def test_an_option_beside_one_that_makes_it_useless_is_refused_and_alone_accepted(capsys, command, name):
    (item,) = [item for item in fields(options_class(command)) if item.name == name]
    given, needs = sample(command, name), item.metadata["needs"]
    needed = alternatives(needs)[0] if needs else []
    for one in alternatives(item.metadata["unused_with"]):
        lines = [*lines_with(command, one), *lines_with(command, one + needed)]
        answers = [refusal(capsys, command, with_option(line, given)) for line in lines]
        expected = f"error: --{name} has no effect with {' and '.join(map(str, one))}: leave one of them out.\n"
        expected = expected.replace("*", "x") if "*" in expected else expected
        assert any(answer.replace("*", "x") == expected for answer in answers), answers
    answers = [refusal(capsys, command, with_option(line, given)) for line in lines_with(command, needed)]
    assert "" in answers, answers


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_each_condition(capsys, command):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli._parse(command, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for item in fields(options_class(command)):
        for kind, words in (("needs", "Needs"), ("unused_with", "Not with")):
            if item.metadata.get(kind):
                assert f"{words} {in_words(item.metadata[kind])}." in text


@dataclass
class Options:
    rank: int = option(0, "Rank.")
    alpha: float = option(1.0, "Alpha.", needs="rank")
    store: str = option("none", "Store.", ("none", "jpeg", "raw"))
    quality: int = option(90, "Quality.", needs="store=jpeg")
    keep: bool = option(False, "Keep.", needs="rank", aliases=["keeps"])
    private: bool = option(True, "Private.", needs="rank or store")
    names: list[str] = option([], "Names.", unused_with="store and rank")  # noqa: RUF009


def refused(capsys, *line: str) -> str:
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_options(Options, command_line=line)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--alpha 2", "--alpha has no effect without --rank: add it, or leave --alpha out."),
        ("--alpha 1.0", "--alpha has no effect without --rank: add it, or leave --alpha out."),
        ("--alpha 2 --rank 0", "--alpha has no effect with --rank 0: leave one of them out."),
        (
            "--quality 80 --store raw",
            "--quality has no effect without --store jpeg: add --store jpeg, or leave --quality out.",
        ),
        ("--keeps", "--keep has no effect without --rank: add it, or leave --keep out."),
        (
            "--private false",
            "--private has no effect without --rank or --store: add --rank or --store, or leave --private out.",
        ),
        ("--no_private", "--private has no effect without --rank or --store: add --rank or --store, or leave "),
        ("--names a --store raw --rank 1", "--names has no effect with --store and --rank: leave one of them out."),
        ("--rank 1 --rank 2", "--rank is given twice: give it once."),
        ("--rank 1 --rank=1", "--rank is given twice: give it once."),
        ("--names a --names b", "--names is given twice: give it once; several values follow one option."),
        ("--keep --keeps --rank 1", "--keep and --keeps set the same option: give one of them."),
        ("--private --no_private --rank 1", "--private and --no_private set the same option: give one of them."),
    ],
)
def test_the_sentence_names_both_options_and_the_remedy(capsys, line, message):
    assert refused(capsys, *line.split()).startswith(f"error: {message}")


@pytest.mark.parametrize("line", ["", "--keep false", "--alpha 2 --rank 1", "--names a --store raw", "--names a b"])
def test_what_has_an_effect_and_what_asks_for_nothing_is_accepted(line):
    assert isinstance(parse_options(Options, command_line=line.split()), Options)


def test_only_options_on_the_command_line_count(capsys):
    saved = {"alpha": 5.0, "keep": True}
    assert parse_options(Options, command_line=[], defaults=saved).alpha == 5.0
    assert parse_options(Options, command_line=["--alpha", "2"], defaults={"rank": 4}).alpha == 2.0
    assert Options(alpha=5.0, keep=True).keep  # from Python
    with pytest.raises(ValueError, match=r"^--alpha has no effect without --rank"):
        check_conditions(Options, vars(Options(alpha=5.0)), ["alpha"])


def test_options_of_a_resumed_run_are_those_of_its_command_line_and_settings(tmp_path):
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    settings = EpisodicTrainingArguments(dataset="d", lora_rank=4, keep_adapter=True, hub_private=False)
    (run / "state" / "progress.json").write_text(json.dumps({"arguments": asdict(settings)}))
    assert parse_arguments(["--resume", str(run), "--keep_adapter", "false"]).keep_adapter is False
    assert parse_arguments(["--resume", str(run), "--push_to_hub", "me/x"]).hub_private is False
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_arguments(["--resume", str(run), "--features_dir", "f"])


def test_a_preset_can_meet_a_condition():
    assert parse_arguments(["--benchmark", "kinetics100", "--sampling_rate", "20"]).sampling_rate == 20
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_arguments(["--benchmark", "hmdb51", "--sampling_rate", "20"])


@pytest.mark.parametrize("frame_store", ["none", "jpeg"])
def test_reproduce_gives_prepare_no_option_in_vain(frame_store):
    line = ["hmdb51", "--video_root", "v", "--frame_store", frame_store, "--num_workers", "0", "--decoder", "av"]
    arguments = cli._parse("reproduce", line)
    prepared = cli._parse("prepare", arguments.prepare_command())
    assert (prepared.frame_store, prepared.skip_reading) == (frame_store, frame_store == "none")
    assert (prepared.decoder, prepared.num_workers) == ("av", 1) if frame_store == "jpeg" else ("auto", os.cpu_count())


def test_a_condition_about_no_option_is_an_error_of_the_programmer():
    for condition in ("rnak", "scale", "scale=1"):

        @dataclass
        class Wrong:
            rank: int = option(0, "Rank.")
            scale: float = option(1.0, "Scale.", needs=condition)

        with pytest.raises(TypeError, match=f"The condition '{condition}' of option 'scale' names no other option"):
            make_parser(Wrong)
