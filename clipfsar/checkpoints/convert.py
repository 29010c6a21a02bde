"""`clipfsar convert`: converts checkpoints of other programs, and back."""

from pathlib import Path

import torch

from clipfsar.checked_files import file_for_torch
from clipfsar.checkpoints.arguments import FROM_OFFICIAL, FROM_OPENAI, TO_OFFICIAL, ConvertArguments
from clipfsar.checkpoints.convert_official import (
    model_of_state,
    official_checkpoint,
    read_checkpoint,
    save_with_processor,
)
from clipfsar.checkpoints.convert_openai import convert_openai_checkpoint
from clipfsar.checkpoints.converted_card import record_conversion
from modeling_clipfsar import CLIPFSARModel
from paths_clipfsar import replace_file


def from_official(arguments: ConvertArguments):
    checkpoint, clip_checkpoint, output_dir = arguments.needed
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"--checkpoint {checkpoint}: there is no such file.")
    program, state, recorded = read_checkpoint(checkpoint)
    print(f"{checkpoint} was written by {program.name}.")
    settings = (arguments.num_frames, arguments.support_pooling, recorded)
    model, report = model_of_state(program, state, checkpoint, clip_checkpoint, *settings)
    print("\n".join(report))
    tokenizer = arguments.tokenizer
    if tokenizer is None and not Path(clip_checkpoint).is_file():
        tokenizer = clip_checkpoint
    save_with_processor(model, output_dir, tokenizer, program)
    record_conversion(Path(output_dir), program.name, checkpoint, clip_checkpoint, model.config.num_frames)


def from_openai(arguments: ConvertArguments):
    clip_checkpoint, output_dir = arguments.needed
    if not Path(clip_checkpoint).is_file():
        raise FileNotFoundError(
            f"--clip_checkpoint {clip_checkpoint}: there is no such file. (With --checkpoint, to convert an "
            "official checkpoint, it may be a Hub id.)"
        )
    model, weights, report = convert_openai_checkpoint(clip_checkpoint, arguments.hidden_act)
    print("\n".join(report))
    save_with_processor(model, output_dir, arguments.tokenizer, state_dict=weights)


def to_official(arguments: ConvertArguments):
    name, file = arguments.needed
    checkpoint = Path(file)
    if checkpoint.exists():
        raise ValueError(f"--checkpoint {checkpoint} is there already: name a new file to write to.")
    model = CLIPFSARModel.from_pretrained(name, dtype=torch.float32)
    converted = official_checkpoint(model)
    with replace_file(checkpoint) as partial, file_for_torch(partial) as file:
        torch.save(converted, file)
    print(f"{checkpoint}: {len(converted['model_state'])} weights; the format has no place for CLIP's text tower.")


def main(arguments: ConvertArguments):
    convert = {FROM_OFFICIAL: from_official, FROM_OPENAI: from_openai, TO_OFFICIAL: to_official}
    convert[arguments.direction](arguments)


__all__ = ["main"]
