"""Models of other packages, as their packages list them: how each is built, and its input.

`FAMILIES` has, for each package, the names of all its models that may have batch normalization, and
a function that builds one of them without pretrained weights. `ARCHITECTURES` has the sixty that
are run, with the shape of their input; where that is not one tensor, `inputs_of` makes it.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ARCHITECTURES", "FAMILIES", "Family", "inputs_of"]

SMALL, LARGE = (3, 3, 64, 64), (3, 3, 96, 96)
CLIP = (2, 3, 8, 56, 56)
NODES, FEATURES = 40, 16


@dataclass(frozen=True)
class Family:
    """A package, the names of its models, and how one is built."""

    package: str
    names: Callable[[], Iterable[str]]
    build: Callable[[str], Any]


# --- torchvision, timm, segmentation-models -------------------------------------------------------


def _torchvision_names():
    from torchvision import models

    # Quantizable models are built with weights of their own kind.
    return [name for name in models.list_models() if not name.startswith("quantized_")]


def _torchvision(name):
    from torchvision import models

    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    wanted = inspect.signature(models.get_model_builder(name)).parameters
    if "weights_backbone" in wanted:
        more["weights_backbone"] = None
    return models.get_model(name, weights=None, **more)


def _timm_names():
    import timm

    return timm.list_models()


def _timm(name):
    import timm

    return timm.create_model(name)


def _segmentation_names():
    import segmentation_models_pytorch as smp

    encoders = smp.encoders.get_encoder_names()
    return [f"unet of {each}" for each in encoders] + [
        f"{each} of resnet18" for each in smp.MODEL_ARCHITECTURES_MAPPING
    ]


def _segmentation(name):
    import segmentation_models_pytorch as smp

    decoder, _, encoder = name.partition(" of ")
    return smp.create_model(decoder, encoder, encoder_weights=None)


# --- PyG ------------------------------------------------------------------------------------------

_GRAPHS = {
    "BatchNorm": lambda nn: nn.BatchNorm(FEATURES),
    "HeteroBatchNorm": lambda nn: nn.HeteroBatchNorm(FEATURES, 3),
    **{
        name: lambda nn, name=name: getattr(nn, name)(FEATURES, 32, 3, norm="batch_norm")
        for name in ("GCN", "GraphSAGE", "GIN", "GAT", "PNA", "EdgeCNN", "MLP")
        if name != "PNA"
    },
    "DeepGCNLayer": lambda nn: nn.DeepGCNLayer(
        nn.GCNConv(FEATURES, FEATURES), nn.BatchNorm(FEATURES)
    ),
    "GMM of MLP": lambda nn: nn.MLP([FEATURES, 32, 32, 8]),
}


def _graphs(name):
    from torch_geometric import nn

    return _GRAPHS[name](nn)


# --- transformers ---------------------------------------------------------------------------------


def _transformers_names():
    import transformers

    folder = Path(transformers.__file__).parent / "models"
    files = sorted(folder.glob("*/modeling_*.py"))
    return [f"{each.parent.name}.{each.stem}" for each in files if "BatchNorm" in each.read_text()]


def _transformers(name):
    """The model of a file, of its default configuration, that has most layers."""
    import transformers

    module = importlib.import_module(f"transformers.models.{name}")
    found, failed = [], None
    for kind_name, kind in inspect.getmembers(module, inspect.isclass):
        is_model = issubclass(kind, transformers.PreTrainedModel)
        if (
            is_model
            and kind.__module__ == module.__name__
            and not kind_name.endswith("PreTrainedModel")
        ):
            try:
                found.append(kind(kind.config_class()))
            except Exception as error:
                failed = error
    if not found:
        raise failed or ValueError("no model in it")
    return max(found, key=lambda model: sum("Norm" in type(m).__name__ for m in model.modules()))


def _transformer(name):
    """One of the sixty, by the name of its class."""
    import transformers

    kind = getattr(transformers, name)
    return kind(kind.config_class())


FAMILIES = {
    each.package: each
    for each in (
        Family("torchvision", _torchvision_names, _torchvision),
        Family("timm", _timm_names, _timm),
        Family("segmentation_models_pytorch", _segmentation_names, _segmentation),
        Family("torch_geometric", lambda: list(_GRAPHS), _graphs),
        Family("transformers", _transformers_names, _transformers),
    )
}


# --- the sixty ------------------------------------------------------------------------------------


def _all(package, build, shape, names):
    return [(package, name, build, shape) for name in names.split()]


ARCHITECTURES = [
    *_all(
        "torchvision", _torchvision, SMALL,
        "resnet18 resnet50 resnext50_32x4d densenet121 mobilenet_v2 mobilenet_v3_small "
        "mobilenet_v3_large efficientnet_b0 mnasnet0_5 shufflenet_v2_x0_5 googlenet vgg11_bn "
        "regnet_y_400mf regnet_x_400mf fcn_resnet50 lraspp_mobilenet_v3_large "
        "deeplabv3_mobilenet_v3_large",
    ),
    *_all("torchvision", _torchvision, (2, 3, 299, 299), "inception_v3"),
    *_all("torchvision", _torchvision, CLIP, "r3d_18 mc3_18"),
    *_all(
        "timm", _timm, SMALL,
        "efficientnet_b0 tf_efficientnet_lite0 mobilenetv2_050 mobilenetv3_small_050 "
        "mobilenetv4_conv_small regnety_002 densenet121 cspresnet50 ese_vovnet19b_dw dpn48b "
        "repvgg_a0 mobilevit_xxs hrnet_w18_small ghostnet_050 res2net50_14w_8s resnest14d "
        "rexnetr_200 fbnetc_100 mixnet_s dla34 lcnet_050 tinynet_e hardcorenas_a selecsls42 "
        "skresnet18 gernet_s mobileone_s0 xception41 resnet18d",
    ),
    *_all("timm", _timm, (2, 3, 139, 139), "inception_v4"),
    *_all("timm", _timm, (2, 3, 224, 224), "levit_128s"),
    *[
        ("segmentation_models_pytorch", name, _segmentation, SMALL)
        for name in (
            "unet of resnet18", "linknet of mobilenet_v2", "fpn of timm-mobilenetv3_small_100",
            "deeplabv3plus of efficientnet-b0", "manet of resnet18",
        )
    ],
    *_all("torch_geometric", _graphs, None, "GIN GCN DeepGCNLayer"),
    *_all(
        "transformers", _transformer, SMALL, "ResNetModel RegNetModel MobileNetV2Model"
    ),
]  # fmt: skip


def inputs_of(torch, package, shape):
    """Arguments of a call: images, clips, or a graph, the same every time."""
    generator = torch.Generator().manual_seed(7)
    if package != "torch_geometric":
        return (torch.randn(shape, generator=generator),)
    x = torch.randn(NODES, FEATURES, generator=generator)
    return x, torch.randint(NODES, (2, 4 * NODES), generator=generator)
