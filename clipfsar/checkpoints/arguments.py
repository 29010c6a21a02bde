"""Options of `clipfsar convert` and `clipfsar push`. Imports nothing heavy, so that `--help` answers at once."""

from dataclasses import dataclass

from clipfsar.names import check_source, find_model
from clipfsar.options import REQUIRED, option
from paths_clipfsar import check_path

FROM_OFFICIAL, FROM_OPENAI, TO_OFFICIAL = "from_official", "from_openai", "to_official"
# What each direction needs and what else it takes; its name tells a user which one is meant.
_DIRECTIONS = {
    FROM_OFFICIAL: (
        "an official checkpoint",
        ("checkpoint", "clip_checkpoint", "output_dir"),
        ("tokenizer", "num_frames"),
    ),
    FROM_OPENAI: ("OpenAI's or open_clip's weights", ("clip_checkpoint", "output_dir"), ("tokenizer", "hidden_act")),
    TO_OFFICIAL: ("the way back (--model)", ("model", "checkpoint"), ()),
}


@dataclass
class ConvertArguments:
    """Turns checkpoints of other programs into folders that `from_pretrained` loads, and back.

        clipfsar convert --checkpoint checkpoint_epoch_00001.pyth --clip_checkpoint RN50.pt \\
            --output_dir clip-fsar-rn50 --tokenizer openai/clip-vit-base-patch32  # the official program's
        clipfsar convert --clip_checkpoint RN50.pt --output_dir clip-rn50 \\
            --tokenizer openai/clip-vit-base-patch32                              # OpenAI's CLIP, to train from
        clipfsar convert --model clip-fsar-rn50 --checkpoint back_again.pyth      # to the official program

    An official checkpoint holds the visual tower (a ViT or CLIP's ResNet, of any size), the temporal transformer (of
    any depth) and the video-text scale. CLIP's text tower is not in it and comes from --clip_checkpoint: OpenAI's file
    (TorchScript archive or state dict), or a Hugging Face folder or Hub id of a CLIP or a CLIP-FSAR model.

    CLIP weights of OpenAI or open_clip (ViT or ResNet) make a folder to start training from. It holds CLIP's weights
    alone: our own layers are initialized wherever it is loaded (transformers says so), as from a plain CLIP on the Hub.

    No file's own program is run. The optimizer's state is not converted.
    """

    checkpoint: str | None = option(None, "The official program's .pyth file; with --model, the new file to write.")
    clip_checkpoint: str | None = option(
        None,
        "OpenAI's .pt file (TorchScript archive or state dict), or open_clip's .pt or .safetensors. With --checkpoint, "
        "the CLIP of the text tower: such a file, or a Hugging Face folder or Hub id.",
    )
    output_dir: str | None = option(None, "Folder to write.")
    model: str | None = option(None, "The way back: a CLIP-FSAR folder or Hub id to write as an official checkpoint.")
    tokenizer: str | None = option(
        None,
        "Tokenizer to put beside the weights: a folder or Hub id of any CLIP of OpenAI's. Default: that of "
        "--clip_checkpoint if it is a Hugging Face one; .pt files have none.",
    )
    num_frames: int = option(8, "Frames per video that an official checkpoint was trained with.")
    hidden_act: str = option(
        "quick_gelu",
        "Activation of the transformers, for CLIP weights alone: OpenAI's is quick_gelu, that of open_clip's models "
        "without 'quickgelu' in their name is gelu.",
        ("quick_gelu", "gelu"),
    )

    def __post_init__(self):
        if not any((self.model, self.checkpoint, self.clip_checkpoint)):
            raise ValueError(
                "There is nothing to convert. Give --checkpoint, --clip_checkpoint and --output_dir for an official "
                "checkpoint; --clip_checkpoint and --output_dir for OpenAI's weights; --model and --checkpoint for the "
                "way back."
            )
        kind, needed, taken = _DIRECTIONS[self.direction]
        missing = [f"--{name}" for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"To convert {kind}, {' and '.join(f'--{name}' for name in needed)} are needed; "
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
            )
        defaults = {"num_frames": 8, "hidden_act": "quick_gelu"}
        for name in ("clip_checkpoint", "output_dir", "tokenizer", "num_frames", "hidden_act"):
            if name not in (*needed, *taken) and getattr(self, name) != defaults.get(name):
                raise ValueError(f"--{name} plays no part in converting {kind}: leave it out.")

    @property
    def direction(self) -> str:
        """`"from_official"`, `"from_openai"` or `"to_official"`, by the options that are given."""
        if self.model is not None:
            return TO_OFFICIAL
        return FROM_OFFICIAL if self.checkpoint is not None else FROM_OPENAI

    def check_files(self):
        """Raises `FileNotFoundError` for what is not there."""
        self.model = find_model("model", self.model)
        if self.direction == FROM_OFFICIAL:
            check_path("checkpoint", self.checkpoint, is_local=True)
        if self.direction == FROM_OPENAI:
            check_path("clip_checkpoint", self.clip_checkpoint, is_local=True)
        else:
            check_source("clip_checkpoint", self.clip_checkpoint)
        check_source("tokenizer", self.tokenizer)


@dataclass
class PushArguments:
    """Uploads the folder of a model, made by `clipfsar train` or `clipfsar convert`, to the Hugging Face Hub.

        clipfsar push --folder runs/mine/best --repo_id me/clip-fsar-mine
        clipfsar push --folder runs/mine/best --repo_id me/clip-fsar-mine --private false --revision v2

    Log in before with `hf auth login`. A new repository is private unless you ask otherwise. Weights, processor, code,
    settings and model card go up, after a check that all of them are there; nothing else does.
    """

    folder: str = option(REQUIRED, "Folder of a model, e.g. runs/mine/best.", aliases=["model"])
    repo_id: str = option(REQUIRED, "Repository on the Hub, USER/NAME; made if need be.")
    private: bool = option(True, "Make a new repository private; an old one stays as it is.")
    revision: str | None = option(None, "Branch to upload to; made if need be.")
    commit_message: str = option("Upload CLIP-FSAR model", "Message of the commit.")

    def check_files(self):
        """Raises `FileNotFoundError` when the folder is not there."""
        check_path("folder", self.folder, "Give the folder of a model, e.g. runs/mine/best.", is_local=True)
        self.folder = find_model("folder", self.folder)


__all__ = ["FROM_OFFICIAL", "FROM_OPENAI", "TO_OFFICIAL", "ConvertArguments", "PushArguments"]
