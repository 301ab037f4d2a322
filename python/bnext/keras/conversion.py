"""Models with Keras's layers as models with bnext's, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from bnext.keras.layer import BatchNormalization

__all__ = ["convert", "revert"]

OWN = ("activation", "negative_slope")  # arguments that Keras's layer lacks


def convert(model: Any) -> Any:
    """Make a model with bnext's layers of a model with Keras's batch normalization.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential, built; models in it as well. It stays as it is.

    Returns
    -------
    keras.Model
        A copy with the same weights, which is not compiled. Each `keras.layers.BatchNormalization`
        is a `BatchNormalization` there, with the same name.

    Raises
    ------
    ValueError
        `model` has a form that `keras.models.clone_model` does not copy.
    """

    def changed(layer: Any) -> Any:
        if type(layer) is keras.layers.BatchNormalization:
            return BatchNormalization.from_config(layer.get_config())
        return layer.__class__.from_config(layer.get_config())

    return _copied(model, changed)


def revert(model: Any) -> Any:
    """Make a model with Keras's own layers of a model with bnext's.

    Parameters
    ----------
    model : keras.Model
        As for `convert`.

    Returns
    -------
    keras.Model
        A copy with the same weights, which is not compiled.

    Raises
    ------
    ValueError
        A layer has an activation, which Keras's layer lacks; or as `convert`.
    """

    def changed(layer: Any) -> Any:
        if type(layer) is not BatchNormalization:
            return layer.__class__.from_config(layer.get_config())
        if layer.activation is not None:
            raise ValueError(
                f"model: expected layers without activation, got {layer.activation!r} in "
                f"{layer.name}"
            )
        config = {name: value for name, value in layer.get_config().items() if name not in OWN}
        return keras.layers.BatchNormalization.from_config(config)

    return _copied(model, changed)


def _copied(model: Any, changed: Callable[[Any], Any]) -> Any:
    copy = keras.models.clone_model(model, clone_function=changed, recursive=True)
    copy.set_weights(model.get_weights())
    return copy
