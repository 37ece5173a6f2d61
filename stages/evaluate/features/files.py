"""Looks at the files of feature networks before anything starts: that they are there, are of a format that runs no
code, and hold what the network reads. In: a `FeaturesConfig`, and the config's field that holds it. Out: nothing;
InputError naming the file, the field and the key.

Headers and configs are read, no tensor: nothing heavy is imported.
"""

from __future__ import annotations

from omniloom.infra.errors import InputError
from omniloom.models.features import layouts
from omniloom.models.features.archive import forward_arguments
from omniloom.models.tokenizer.vit_config import ViTConfig
from omniloom.stages.checkpoints.clip_folder import check_clip_folder, read_clip_config
from omniloom.stages.checkpoints.outside import opened
from omniloom.stages.checkpoints.tensors import header, require_tensors
from omniloom.stages.checkpoints.vision_encoder import encoder_config
from omniloom.stages.evaluate.features.config import FeaturesConfig, LpipsConfig

_SCRIPTED = (".pt", ".pth", ".ts", ".torchscript", ".jit")  # how such files are called
_I3D = ("rescale", "resize", "return_features")


def check_files(config: FeaturesConfig, field: str) -> None:
    if config.inception:
        _inception(config.inception, f"{field}.inception")
    if config.dinov2:
        _dinov2(config.dinov2, f"{field}.dinov2")
    if config.clip:
        check_clip_folder(config.clip, f"{field}.clip")
    if config.i3d:
        _scripted(config.i3d, f"{field}.i3d", _I3D)
    if config.lpips:
        _lpips(config.lpips, f"{field}.lpips")


def is_scripted(uri: str) -> bool:
    """Whether the file is meant to be TorchScript, by its name."""
    return uri.endswith(_SCRIPTED)


def _inception(uri: str, field: str) -> None:
    if is_scripted(uri):
        _scripted(uri, field, ("return_features",))
    else:
        require_tensors(uri, field, layouts.inception_tensors())


def _dinov2(uri: str, field: str) -> None:
    require_tensors(uri, field, layouts.dinov2_tensors(dinov2_config(uri, field)))


def dinov2_config(uri: str, field: str) -> ViTConfig:
    config = encoder_config(uri, field)
    if not config.prefix or config.pre_norm:  # SigLIP's has no class token, CLIP's norms before its blocks
        raise InputError("architectures: expected a DINOv2, got another vision encoder", field=field, file=uri)
    return config


def reads_texts(config: FeaturesConfig, field: str) -> bool:
    """Whether the folder of CLIP has a tower of texts."""
    return bool(config.clip and read_clip_config(config.clip, f"{field}.clip").text)


def _scripted(uri: str, field: str, wanted: tuple[str, ...]) -> None:
    with opened(uri, field) as file:
        try:
            found = forward_arguments(file)
        except ValueError as error:
            raise InputError(str(error), field=field, file=uri) from None
    if missing := [name for name in wanted if name not in found]:
        raise InputError(
            f"its forward takes {', '.join(found)}; expected {', '.join(missing)} too", field=field, file=uri
        )


def _lpips(config: LpipsConfig, field: str) -> None:
    require_tensors(config.vgg, f"{field}.vgg", layouts.vgg_tensors())
    published = "lin0.model.1.weight" in header(config.heads, f"{field}.heads")
    require_tensors(config.heads, f"{field}.heads", layouts.head_tensors(published))
