"""FSDP 2 trains like several processes without it; other settings of accelerate are refused, never ignored."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from tiny_data import read_log, run_in_children, training_arguments, video_splits, write_video_folder
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor, init_device_mesh
from transformers import TrainerCallback

from clipfsar.training import sharding
from clipfsar.training.accelerator import make_accelerator
from clipfsar.training.arguments import EpisodicTrainingArguments, parse_arguments
from clipfsar.training.program import make_trainer
from clipfsar.training.sharding import (
    check_form_of_state,
    gather_weights,
    make_fsdp_plugin,
    prepare,
    start_sharding,
)
from clipfsar.training.trainer import log_to_terminal

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def fsdp_settings(monkeypatch):
    """Sets the variables that `accelerate launch` makes of its configuration."""
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")

    def choose(**variables: str):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return choose


class StopAtHalf(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= state.max_steps // 2
        return control


def train_in_two_halves(arguments: list[str], variables: dict[str, str]):
    """In a child: a run that stops at half, and the rest of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        log_to_terminal()
        trainer, _ = make_trainer(parse_arguments(arguments))
        trainer.add_callback(StopAtHalf())
        trainer.train()
        sharded = [weight for weight in trainer.wrapped_model.parameters() if isinstance(weight, DTensor)]
        assert bool(sharded) == bool(variables)
        if variables:
            assert len(sharded) == sum(weight.requires_grad for weight in trainer.model.parameters())
            ours, all_of_them = (sum(f(weight) for weight in sharded) for f in (_num_local, torch.Tensor.numel))
            assert ours < 0.6 * all_of_them
        trainer, test = make_trainer(parse_arguments([*arguments, "--resume"]))
        trainer.train(resume_from_checkpoint=True)
        trainer.evaluate(test)
        trainer.close()


def _num_local(weight: DTensor) -> int:
    return weight.to_local().numel()


@pytest.mark.whole_program
def test_fsdp_2_gives_the_losses_and_whole_weights_of_the_same_processes_without_it(tiny_clip, tmp_path):
    video_splits(write_video_folder(tmp_path / "videos", videos_per_class=3)).save_to_disk(tmp_path / "data")
    runs = {"with": FSDP, "without": {}}
    for name, variables in runs.items():
        arguments = training_arguments(
            tmp_path / "data", tiny_clip, tmp_path / name, eval_episodes=4, test_episodes=2, max_grad_norm=0.5
        )
        outcome = run_in_children(
            train_in_two_halves, arguments, variables, folder=tmp_path / "output", num_processes=2
        ).check()
        assert ("with FSDP 2" in outcome.output) == (name == "with")
    states = [json.loads((tmp_path / name / "state" / "progress.json").read_text()) for name in runs]
    assert [state["fsdp"] for state in states] == ["SHARDED_STATE_DICT", None]
    ours, theirs = (read_log(tmp_path / name) for name in runs)
    assert len(ours) == 6
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, abs=1e-5)
    for folder in ("best", "last"):
        files = [load_file(tmp_path / name / folder / "model.safetensors") for name in runs]
        assert files[0].keys() == files[1].keys()
        # The gradient of these is only round-off, which Adam enlarges.
        names = [name for name in files[0] if not name.endswith("k_proj.bias")]
        assert max((files[0][name] - files[1][name]).abs().max() for name in names) < 1e-5


@pytest.mark.parametrize(
    ("variables", "options", "match"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, r"DeepSpeed is not supported \(ACCELERATE_USE_DEEPSPEED is set\)"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "Megatron-LM is not supported"),
        ({**FSDP, "FSDP_VERSION": "1"}, {}, "fsdp_version: 1 is not supported: set fsdp_version: 2"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params is not supported"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "give --gradient_checkpointing"),
        ({**FSDP, "FSDP_IGNORED_MODULES": "clip"}, {}, "frozen weights are never sharded"),
        (FSDP, {"mixed_precision": "fp16"}, "use --mixed_precision bf16 or no"),
        (FSDP, {"torch_compile": True}, "--torch_compile is not supported with FSDP 2"),
    ],
)
def test_settings_of_accelerate_that_are_not_supported_are_refused(fsdp_settings, variables, options, match):
    fsdp_settings(**variables)
    args = EpisodicTrainingArguments(**options)
    with pytest.raises(ValueError, match=match):
        make_fsdp_plugin(args.mixed_precision, args.torch_compile)


def test_fsdp_with_one_process_is_refused(fsdp_settings, tmp_path):
    assert make_fsdp_plugin(None, False) is None  # nothing asks for it
    fsdp_settings(**FSDP)
    plugin = make_fsdp_plugin("bf16", False)
    assert (plugin.fsdp_version, plugin.cpu_ram_efficient_loading) == (2, False)
    with pytest.raises(ValueError, match="there is only one process: start several"):
        start_sharding(Accelerator(cpu=True), plugin)
    with pytest.raises(ValueError, match="there is only one process: start several"):
        make_accelerator(EpisodicTrainingArguments(output_dir=str(tmp_path), report_to="none"))


def test_a_state_of_fsdp_does_not_continue_without_it():
    accelerator = Accelerator(cpu=True)
    check_form_of_state(accelerator, None, Path("runs/mine"))
    with pytest.raises(ValueError, match=r"saved with FSDP 2 \(SHARDED_STATE_DICT\) and cannot continue without FSDP"):
        check_form_of_state(accelerator, "SHARDED_STATE_DICT", Path("runs/mine"))


# --- one process, as FSDP 2 would have it -----------------------------------------------------------------------------


class Sharding:
    """The accelerator of one of several processes: what it prepares, it returns."""

    is_fsdp2 = True

    def __init__(self):
        form = SimpleNamespace(name="FULL_STATE_DICT")
        self.state = SimpleNamespace(fsdp_plugin=SimpleNamespace(state_dict_type=form, ignored_modules=None))

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16)

    def prepare(self, *parts):
        return parts


def test_an_accelerator_is_told_that_it_shards(monkeypatch):
    ours, shared = SimpleNamespace(num_processes=2, state=SimpleNamespace()), SimpleNamespace()
    monkeypatch.setattr(sharding, "PartialState", lambda: shared)
    start_sharding(ours, "plugin")
    assert (shared.distributed_type, ours.state.distributed_type) == (DistributedType.FSDP, DistributedType.FSDP)
    assert ours.state.fsdp_plugin == "plugin"


def test_a_state_without_fsdp_does_not_continue_with_it():
    check_form_of_state(Sharding(), "FULL_STATE_DICT", Path("runs/mine"))
    message = (
        r"^The run in runs/mine was saved without FSDP and cannot continue with FSDP 2 \(FULL_STATE_DICT\): resume it "
        r"with the settings of accelerate that it was started with\.$"
    )
    with pytest.raises(ValueError, match=message):
        check_form_of_state(Sharding(), None, Path("runs/mine"))


def test_a_copy_trains_that_shares_the_frozen_weights_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    optimizer, accelerator = torch.optim.SGD(model[1].parameters(), lr=0.5), Sharding()
    trained, stepped, loader = prepare(accelerator, model, optimizer, ["batch"])
    assert (stepped, loader) == (optimizer, ["batch"])
    assert trained[0].weight is model[0].weight
    assert trained[1].weight is not model[1].weight
    assert torch.equal(trained[1].weight, model[1].weight)
    assert [id(one) for one in optimizer.param_groups[0]["params"]] == [id(one) for one in trained[1].parameters()]
    (ignored,) = accelerator.state.fsdp_plugin.ignored_modules
    assert [id(one) for one in ignored] == [id(one) for one in model[0].parameters()]
    assert trained[:2](torch.ones(2, 3)).dtype == torch.float32
    assert trained(torch.ones(2, 3)).dtype == torch.bfloat16  # as a whole it computes as the accelerator says


def test_the_copy_begins_with_the_weights_of_the_first_process(monkeypatch):
    monkeypatch.setattr(sharding, "broadcast", lambda tensor: torch.full_like(tensor, 3))
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    model[0].weight.data = model[0].weight.data.t().contiguous().t()  # not contiguous
    trained, *_ = prepare(Sharding(), model, torch.optim.SGD(model.parameters(), lr=0.5), [])
    for one in (model, trained):
        assert all(tensor.eq(3).all() for tensor in one.state_dict().values())


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_trained_weights_and_statistics_come_back_into_the_model(process_group):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    trained = copy.deepcopy(model)
    trained[0].weight.data.fill_(5.0)
    trained[1].running_mean.fill_(7.0)
    trained.register_buffer("of_the_wrapper", torch.ones(1))
    whole = distribute_tensor(trained[0].weight.data, init_device_mesh("cpu", (1,)), [Replicate()])
    trained[0].weight = torch.nn.Parameter(whole)
    gather_weights(Accelerator(cpu=True), trained, model)  # without FSDP 2 there is nothing to do
    assert not model[0].weight.eq(5.0).any()
    gather_weights(Sharding(), trained, model)
    assert model[0].weight.eq(5.0).all()
    assert model[1].running_mean.eq(7.0).all()


@pytest.mark.parametrize("given", ["true", "True", "1", "yes"])
def test_settings_are_on_in_each_spelling_of_accelerate(fsdp_settings, given):
    fsdp_settings(ACCELERATE_USE_PARALLELISM_CONFIG=given)
    with pytest.raises(ValueError, match=r"^accelerate's parallelism_config is not supported \(ACCELERATE_USE_PAR"):
        make_fsdp_plugin(None, False)


def test_layers_are_units_and_weights_stay_in_float32_unless_accelerate_says_otherwise(fsdp_settings, monkeypatch):
    monkeypatch.delenv("FSDP_AUTO_WRAP_POLICY")
    fsdp_settings(**FSDP, ACCELERATE_MIXED_PRECISION="bf16")
    plugin = make_fsdp_plugin(None, False)
    assert plugin.auto_wrap_policy is not None
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.float32,) * 3
    fsdp_settings(ACCELERATE_MIXED_PRECISION="fp16")
    assert make_fsdp_plugin("bf16", False) is not None  # the run's option comes first
    with pytest.raises(ValueError, match="fp16 is not supported with FSDP 2"):
        make_fsdp_plugin(None, False)
