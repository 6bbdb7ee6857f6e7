"""A network takes the shape of its images and its number of classes from the data, before it is made."""

from typing import Any

from jsonargparse import Namespace

from odenet_lightning.cli.errors import UsageError, named_in_errors
from odenet_lightning.cli.layers import resolved
from odenet_lightning.data import ImageDataModule, MNISTDataModule
from odenet_lightning.models import CLASSES, IMAGE_SHAPE


def take_shape(settings: Namespace, command: str, is_trained: bool) -> None:
    """Set `image_shape` and `classes` of a network whose constructor has them; refuse others than the data's.

    Args:
        settings: a parsed command's, with `model.net` and `data`; changed in place.
        command: its name; `predict` takes no classes from the data, whose folders may not be there.
        is_trained: whether a checkpoint has brought the network's settings.
    """
    net = getattr(settings.model.net, "init_args", None)
    if net is None or not {"image_shape", "classes"} <= vars(net).keys():
        return
    data = made(settings.data)
    if data is None:
        return
    found = data.image_shape, net.classes if command == "predict" else len(data.class_names)
    wanted = tuple(net.image_shape), net.classes
    if wanted != found and (is_trained or wanted != (IMAGE_SHAPE, CLASSES)):
        one, other = (f"{' x '.join(map(str, shape))} in {classes} classes" for shape, classes in (wanted, found))
        raise UsageError(f"the network takes images of {one}, and the data have {other}")
    net.image_shape, net.classes = found


def made(settings: Namespace) -> ImageDataModule | None:
    """The data module of these settings, if it is one of this project's; nothing is loaded."""
    kind: Any = resolved(settings.class_path) if "class_path" in settings else MNISTDataModule
    if not (isinstance(kind, type) and issubclass(kind, ImageDataModule)):
        return None
    given = vars(settings.init_args if "class_path" in settings else settings)
    # objects, such as the augmentation, do not change the shape
    return named_in_errors(kind, **{key: value for key, value in given.items() if not isinstance(value, Namespace)})
