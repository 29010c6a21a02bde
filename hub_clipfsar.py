"""Loading a model from a folder or repository, saving it for `pipeline`, and checks that weights and settings match."""

import inspect
import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig

try:
    from .choices_clipfsar import check_slip
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import check_slip

try:
    from .offloading_clipfsar import computing_device
except ImportError:
    if __package__:
        raise
    from offloading_clipfsar import computing_device

try:
    from .paths_clipfsar import check_folder
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import check_folder

# Classes here are parts of `CLIPFSARModel`, which is a PreTrainedModel.
if TYPE_CHECKING:
    from transformers import PreTrainedModel as _PartOfModel
else:
    _PartOfModel = object
logger = logging.getLogger(__name__)
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
# Settings that must stay as our own layers were trained with them. In the backbone, all whole numbers must stay.
_STRUCTURE = ("temporal_num_layers", "temporal_num_heads", "temporal_intermediate_size")
_OUR_WEIGHTS = ("temporal_transformer.", "video_text_scale")

_VIDEO_WITHOUT_CLASSES = (
    "CLIPFSARModel.forward takes episodes, not the pixel_values of one video: the model has no fixed classes. "
    'Use pipeline("few-shot-video-classification", model=..., trust_remote_code=True), which takes example clips of '
    'your classes, instead of pipeline("video-classification"); or give query_pixel_values and support videos.'
)


class HubOptions(dict):
    """Hub options that a model was loaded with. A token stays in this process: it is not printed, copied or pickled."""

    def __repr__(self):
        return repr(self._without_token())

    def __reduce__(self):
        return dict, (self._without_token(),)

    def _without_token(self) -> dict:
        return {name: value for name, value in self.items() if name != "token"}


class HubFolder(_PartOfModel):
    """The part of `CLIPFSARModel` that loads from and saves to folders and repositories."""

    # Hub options that the model was loaded with; its processor and support set are loaded with the same ones.
    hub_options: dict = {}

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the weights, or, if accelerate has offloaded them, the one that computes."""
        return computing_device(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        if pretrained_model_name_or_path is not None:  # transformers takes None and a state_dict
            check_folder(pretrained_model_name_or_path)
        settings = inspect.signature(cls.config_class.__init__).parameters
        for name in kwargs:
            check_slip(f"{cls.__name__}.from_pretrained", name, settings, TypeError)
        options = HubOptions({name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None})
        wants_info = kwargs.pop("output_loading_info", False)
        is_checked = pretrained_model_name_or_path is not None and not kwargs.get("ignore_mismatched_sizes", False)
        refusal = cls._mismatch(pretrained_model_name_or_path, options, kwargs) if is_checked else None
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except RuntimeError as error:  # shapes do not fit
            if refusal:
                raise ValueError(refusal) from error
            raise
        if refusal and _has_trained_layers(model, info):
            raise ValueError(refusal)
        # With output_loading_info, the caller gets the list of missing weights and decides.
        if is_checked and not wants_info:
            ours = _OUR_WEIGHTS if _has_trained_layers(model, info) else ()
            _check_all_loaded(pretrained_model_name_or_path, info, ours)
        model.hub_options = options
        return (model, info) if wants_info else model

    @classmethod
    def _mismatch(cls, name, options: dict, asked: dict[str, Any]) -> str | None:
        """The error message if keyword arguments do not match the saved weights of our layers; None if they match.

        Raises `ValueError` if they do not match the backbone: every checkpoint has its weights.
        """
        if not {*_STRUCTURE, "clip_config", "config"} & set(asked):
            return None
        saved, _ = cls.config_class.get_config_dict(name, for_training=True, **options)
        if not isinstance(saved.get("clip_config"), dict):
            return None  # not a CLIP-FSAR configuration: transformers raises the error
        is_plain = saved.get("_is_plain_checkpoint", False)
        trained = cls.config_class.from_dict(saved)
        wanted = asked.get("config")
        if isinstance(wanted, (str, os.PathLike)):
            wanted = cls.config_class.from_pretrained(wanted, for_training=True)
        if not isinstance(wanted, PretrainedConfig):
            changes = {key: asked[key] for key in (*_STRUCTURE, "clip_config") if key in asked}
            wanted = cls.config_class.from_dict(saved, **changes)
        trained, wanted = (_structure(config, is_plain) for config in (trained, wanted))
        different = [key for key, value in wanted.items() if trained.get(key, value) != value]
        if not different:
            return None
        key = max(different, key=lambda key: key not in _STRUCTURE)  # backbone settings first
        message = (
            f"The weights in {str(name)!r} were trained with {key}={trained[key]!r}, not {wanted[key]!r}: leave the "
            "setting out. To load them into another model anyway, with random weights where they do not fit, pass "
            "ignore_mismatched_sizes=True."
        )
        if key not in _STRUCTURE:
            raise ValueError(message)
        return message

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Saves as in transformers. If you save the processor to the same folder, `pipeline` can open it."""
        # Imported here because the pipeline imports the model. This import makes its code travel with the model's.
        try:
            from .pipeline_clipfsar import FewShotVideoClassificationPipeline
        except ImportError:
            if __package__:
                raise
            from pipeline_clipfsar import FewShotVideoClassificationPipeline

        self._check_structure()
        self.config.custom_pipelines = FewShotVideoClassificationPipeline.in_config()
        return super().save_pretrained(save_directory, **kwargs)

    def _note_structure(self):
        """Notes the settings that only making the model's parts reads. Called after they are made."""
        names = ["temporal_num_layers"]
        if self.config.temporal_num_layers:
            names += ["temporal_num_heads", "temporal_intermediate_size"]
            names += ["temporal_attention_dropout", "temporal_hidden_dropout"]
        if self.comparison_head is not None:
            names += ["trx_size", "trx_cardinalities", "head_dropout", "num_base_classes"]
        self._made_with = {name: getattr(self.config, name) for name in names}
        if self.config.prototype_modulation and not self.config.temporal_num_layers:
            logger.warning(
                "prototype_modulation=True has no effect with temporal_num_layers=0: a class text reaches the frames "
                "only through the temporal transformer. Set prototype_modulation=False, or add a layer."
            )

    def _check_structure(self):
        """Raises `ValueError` if settings have changed that the model's parts were made with: the change has no effect,
        and a saved folder would load as another model."""
        made_with = self._made_with | {"temporal_num_layers": len(self.temporal_transformer.layers)}
        for name, value in made_with.items():
            if getattr(self.config, name) != value:
                raise ValueError(
                    f"The configuration says {name}={getattr(self.config, name)!r}, but the model was made with "
                    f"{value}: it cannot be changed afterwards. Set it back, or load the model with {name}=."
                )


def _structure(config, is_plain: bool) -> dict[str, Any]:
    """The settings that decide which weights a model has and how they are used together, by name.

    For a plain checkpoint these are the backbone's only: our own layers are new.
    """
    structure = {} if is_plain else {name: getattr(config, name) for name in _STRUCTURE}
    return structure | dict(_backbone_sizes(config.clip_config, "clip_config"))


def _backbone_sizes(config, where: str):
    """Yields a backbone's type and all whole numbers of its towers, alone or in lists, by name."""
    yield f"{where}.model_type", config.model_type
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from _backbone_sizes(value, f"{where}.{name}")
        parts = value if isinstance(value, (list, tuple)) and value else [value]
        if not name.startswith("_") and all(type(part) is int for part in parts):
            yield f"{where}.{name}", list(value) if isinstance(value, (list, tuple)) else value


def _has_trained_layers(model, info: dict[str, Any]) -> bool:
    """Whether the files hold weights of our own layers. A converted CLIP has none: these layers start untrained."""
    ours = {key for key in model.state_dict() if key.startswith(_OUR_WEIGHTS)}
    return not ours <= set(info["missing_keys"]) or any(key.startswith(_OUR_WEIGHTS) for key in info["unexpected_keys"])


def _check_all_loaded(name, info: dict[str, Any], of_trained_layers: tuple[str, ...]):
    """Raises `ValueError` when weights are missing, or when some of our own layers are left over.

    They would be random or dropped. A new head may lack weights, and the file of a backbone may hold more than we use.
    """
    known = {"lack": (*of_trained_layers, "clip."), "include the unexpected": of_trained_layers}
    for what, keys in (("lack", info["missing_keys"]), ("include the unexpected", info["unexpected_keys"])):
        ours = sorted(key for key in keys if key.startswith(known[what]))
        if ours:
            more = f" and {len(ours) - 1} more" if len(ours) > 1 else ""
            raise ValueError(
                f"The weights in {str(name)!r} {what} {ours[0]!r}{more}: the file is damaged, or its config.json "
                "belongs to another model. Restore both files. To load them anyway, with random weights for what is "
                "missing, pass ignore_mismatched_sizes=True."
            )


def check_is_episode(names) -> None:
    """Raises `TypeError` for the input of `pipeline("video-classification")`; the message names what to use instead."""
    if "pixel_values" in names:
        raise TypeError(_VIDEO_WITHOUT_CLASSES)


__all__ = ["HUB_OPTIONS", "HubFolder", "HubOptions", "check_is_episode"]
