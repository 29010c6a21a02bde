"""Options of `clipfsar convert` and `clipfsar push`. Imports nothing heavy, so that `--help` is fast."""

from dataclasses import dataclass

from choices_clipfsar import SUPPORT_POOLINGS
from clipfsar.names import check_source, find_model
from clipfsar.options import REQUIRED, check_least, option
from paths_clipfsar import check_path

FROM_OFFICIAL, FROM_OPENAI, TO_OFFICIAL = "from_official", "from_openai", "to_official"
# For each direction: its name in errors, its required options, its optional options.
_DIRECTIONS = {
    FROM_OFFICIAL: (
        "an official checkpoint",
        ("checkpoint", "clip_checkpoint", "output_dir"),
        ("tokenizer", "num_frames", "support_pooling"),
    ),
    FROM_OPENAI: ("OpenAI's or open_clip's weights", ("clip_checkpoint", "output_dir"), ("tokenizer", "hidden_act")),
    TO_OFFICIAL: ("the way back (--model)", ("model", "checkpoint"), ()),
}


@dataclass
class ConvertArguments:
    """Converts checkpoints of other programs into folders that `from_pretrained` loads, and back.

        clipfsar convert --checkpoint checkpoint_epoch_00001.pyth --clip_checkpoint RN50.pt \\
            --output_dir clip-fsar-rn50 --tokenizer openai/clip-vit-base-patch32  # from the official program
        clipfsar convert --checkpoint checkpoint_best.pt --clip_checkpoint RN50.pt \\
            --output_dir clip-fsar-ucf101 --tokenizer openai/clip-vit-base-patch32  # from CLIP-MEI's CLIP-FSAR
        clipfsar convert --clip_checkpoint RN50.pt --output_dir clip-rn50 \\
            --tokenizer openai/clip-vit-base-patch32                              # OpenAI's CLIP, to train from
        clipfsar convert --model clip-fsar-rn50 --checkpoint back_again.pyth      # to the official program

    CLIP-MEI is the only other program with CLIP-FSAR checkpoints; the file says which program wrote it. The model's
    processor prepares videos as that program does. Official checkpoints with the heads TRX, HyRSM and HyRSM++ are
    converted as well, if their backbone is CLIP's visual tower: plain, or inside CLIP-FSAR.

    Such a checkpoint holds the visual tower (a ViT or CLIP's ResNet, of any size), the temporal transformer (of any
    depth) and the video-text scale. It does not hold CLIP's text tower. --clip_checkpoint gives the text tower:
    OpenAI's file (TorchScript archive or state dict), or a Hugging Face folder or Hub id of a CLIP or CLIP-FSAR model.

    CLIP weights of OpenAI or open_clip (ViT or ResNet) become a folder to start training from. It holds only CLIP's
    weights. CLIP-FSAR's layers are initialized when you load it, as with a plain CLIP from the Hub.

    No code in the files is run. The optimizer's state is not converted.
    """

    checkpoint: str | None = option(
        None, "The official program's .pyth file, or CLIP-MEI's .pt file; with --model, the new file to write."
    )
    clip_checkpoint: str | None = option(
        None,
        "OpenAI's .pt file (TorchScript archive or state dict), or open_clip's .pt or .safetensors. With --checkpoint, "
        "the CLIP that gives the text tower: such a file, or a Hugging Face folder or Hub id.",
    )
    output_dir: str | None = option(None, "Folder to write.")
    model: str | None = option(None, "CLIP-FSAR folder or Hub id, to write as an official checkpoint.")
    tokenizer: str | None = option(
        None,
        "Tokenizer to save with the weights: folder or Hub id of any of OpenAI's CLIPs. Default: the tokenizer of "
        "--clip_checkpoint if it is a Hugging Face model; .pt files have none.",
    )
    num_frames: int = option(
        8, "Frames per video that the checkpoint was trained with.", needs="checkpoint", unused_with="model", least=1
    )
    support_pooling: str | None = option(
        None,
        "Average several shots before or after modulation. Default: what the checkpoint's program does, before in the "
        "official 5-shot settings and after in CLIP-MEI's.",
        SUPPORT_POOLINGS,
    )
    hidden_act: str = option(
        "quick_gelu",
        "Activation of the transformers, when you convert CLIP weights. OpenAI uses quick_gelu. open_clip's models use "
        "gelu, unless their name contains 'quickgelu'.",
        ("quick_gelu", "gelu"),
        unused_with="checkpoint",
    )

    def __post_init__(self):
        check_least(self)
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
        for name in ("clip_checkpoint", "output_dir", "tokenizer", "num_frames", "support_pooling", "hidden_act"):
            if name not in (*needed, *taken) and getattr(self, name) != defaults.get(name):
                raise ValueError(f"--{name} plays no part in converting {kind}: leave it out.")

    @property
    def direction(self) -> str:
        """`"from_official"`, `"from_openai"` or `"to_official"`, depending on the given options."""
        if self.model is not None:
            return TO_OFFICIAL
        return FROM_OFFICIAL if self.checkpoint is not None else FROM_OPENAI

    @property
    def needed(self) -> tuple[str, ...]:
        """Values of the options that the direction requires, in the order of `_DIRECTIONS`."""
        _, needed, _ = _DIRECTIONS[self.direction]
        return tuple(getattr(self, name) for name in needed)

    def check_files(self):
        """Raises `FileNotFoundError` for a missing file, model or tokenizer."""
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
    """Uploads a model's folder, made by `clipfsar train` or `clipfsar convert`, to the Hugging Face Hub.

        clipfsar push --folder runs/mine/best --repo_id me/clip-fsar-mine
        clipfsar push --folder runs/mine/best --repo_id me/clip-fsar-mine --private false --revision v2
        clipfsar push --folder clip-fsar-ucf101 --repo_id me/clip-fsar-ucf101 --license LICENCE --source ADDRESS

    Log in first with `hf auth login`. A new repository is private unless you give --private false. The upload contains
    the folder's weights, processor, code, settings and model card, but no caches, hidden files or training states. If a
    needed file is missing, nothing is uploaded.
    """

    folder: str = option(REQUIRED, "Folder of a model, e.g. runs/mine/best.", aliases=["model"])
    repo_id: str = option(REQUIRED, "Repository on the Hub, USER/NAME; created if missing.")
    private: bool = option(True, "Create a new repository as private. An existing one is not changed.")
    revision: str | None = option(None, "Branch to upload to; created if missing.")
    commit_message: str = option("Upload CLIP-FSAR model", "Message of the commit.")
    license: str | None = option(
        None, "Licence of converted weights, e.g. mit. Required for them; the card of a trained model has its own."
    )
    source: str | None = option(
        None, "Address or citation of the original of converted weights. Required for them.", is_text=True
    )

    def check_files(self):
        """Raises `FileNotFoundError` when the folder does not exist."""
        check_path("folder", self.folder, "Give the folder of a model, e.g. runs/mine/best.", is_local=True)
        self.folder = find_model("folder", self.folder)


__all__ = ["FROM_OFFICIAL", "FROM_OPENAI", "TO_OFFICIAL", "ConvertArguments", "PushArguments"]
