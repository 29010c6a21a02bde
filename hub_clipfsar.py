"""What a model knows of the folder or repository it came from, and what lets `pipeline` open the folder it saves."""

import os

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")


class HubFolder:
    """The part of `CLIPFSARModel` that loads from and saves to folders and repositories."""

    # Options of the Hub that the model was loaded with: what lies beside it is loaded with the same.
    hub_options: dict = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        options = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).hub_options = options
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """As in transformers. With the processor's `save_pretrained`, the folder opens with `pipeline`."""
        # Here and not above: the pipeline needs the model. That it is named here lets its code travel with the model's.
        try:
            from .pipeline_clipfsar import FewShotVideoClassificationPipeline
        except ImportError:
            if __package__:
                raise
            from pipeline_clipfsar import FewShotVideoClassificationPipeline

        self.config.custom_pipelines = FewShotVideoClassificationPipeline.in_config()
        return super().save_pretrained(save_directory, **kwargs)


__all__ = ["HubFolder"]
