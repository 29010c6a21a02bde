"""Turns CLIP weights of OpenAI or open_clip (ViT or ResNet) into a folder to start training from.

    clipfsar convert --clip_checkpoint RN50.pt --output_dir clip-rn50 \\
        --tokenizer openai/clip-vit-base-patch32
    accelerate launch train/train.py --model clip-rn50 ...

transformers has CLIP's ViTs only; its modified ResNets travel with our code. The folder holds CLIP's weights alone:
our own layers begin anew wherever it is loaded (transformers says so), as they do from a plain CLIP on the Hub.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from clipfsar.checkpoints.convert_official import save_with_processor
from clipfsar.checkpoints.openai_weights import load_clip
from clipfsar.options import parse_options
from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel


@dataclass
class Arguments:
    clip_checkpoint: str = field(
        metadata={"help": "OpenAI's .pt file (TorchScript archive or state dict), or open_clip's .pt or .safetensors."}
    )
    output_dir: str = field(metadata={"help": "Folder to write."})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Tokenizer to put beside the weights: a folder or Hub id of any CLIP of OpenAI's."},
    )
    hidden_act: str = field(
        default="quick_gelu",
        metadata={
            "help": "Activation of the transformers: OpenAI's is quick_gelu, that of open_clip's models without "
            "'quickgelu' in their name is gelu.",
            "choices": ["quick_gelu", "gelu"],
        },
    )


def main(arguments: Arguments):
    if not Path(arguments.clip_checkpoint).is_file():
        raise FileNotFoundError(f"--clip_checkpoint {arguments.clip_checkpoint}: there is no such file.")
    clip, report = load_clip(arguments.clip_checkpoint, arguments.hidden_act)
    print("\n".join(report))
    model = CLIPFSARModel(CLIPFSARConfig(clip_config=clip.config))
    model.clip = clip
    weights = {f"clip.{name}": weight for name, weight in clip.state_dict().items()}
    save_with_processor(model, arguments.output_dir, arguments.tokenizer, state_dict=weights)


if __name__ == "__main__":
    try:
        main(parse_options(Arguments, __doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
