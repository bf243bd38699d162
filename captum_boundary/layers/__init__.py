"""Where in a model? The model from a layer on, as a function of the layer's activations."""

from captum_boundary.layers.model_from_layer import ModelFromLayer
from captum_boundary.layers.tokens import nearest_tokens

__all__ = ["ModelFromLayer", "nearest_tokens"]
