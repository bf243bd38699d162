"""Boundary energy times Grad-CAM: a fine map of where the evidence for a decision lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import GradientAttribution
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_unflatten

from captum_boundary._core.arguments import target_of_examples
from captum_boundary._core.batch_sizes import points_at_once, slices
from captum_boundary._core.captum_helpers import (
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    format_output,
    is_tuple,
)
from captum_boundary._core.checks import check_count, check_inputs
from captum_boundary._core.context import geometry
from captum_boundary._core.margin import resolve_target
from captum_boundary._core.model import Model
from captum_boundary._core.modules import outputs_recorded
from captum_boundary._core.repeatability import watch_repeatability
from captum_boundary.attr._captum_method import BoundaryMethod, captum_method
from captum_boundary.attr._spatial_grid import ReshapeTransform, grid_of
from captum_boundary.attr.boundary_energy import BoundaryEnergy
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

__all__ = ["BoundaryGradCam"]

# Standard deviation of the window in which energy is averaged: the width of an image over this, and at least a pixel.
_WINDOWS_PER_WIDTH = 75


class BoundaryGradCam(BoundaryMethod, GradientAttribution):  # type: ignore[misc]
    r"""Boundary energy of an image times Grad-CAM of a layer: fine as the one, and about the class as the other.

    :class:`BoundaryEnergy` tells which pixels the score reacts to near the decision boundary, and not in which
    direction. Grad-CAM (https://arxiv.org/abs/1610.02391) tells which positions of a layer raise the class, and is as
    coarse as that layer. Their product is large where both are. Cost: ``2 * n_samples + 1`` gradients for each image,
    49 by default, and one more forward pass.

    Args:

        forward_func (Callable): The model or any function around it that returns class scores ``(N, C)``, or ``(N,)``
            or ``(N, 1)`` for a binary model. Logits are best.
        layer (nn.Module): The last layer with positions, called once in a pass: the last convolutional stage of a CNN,
            such as ``model.layer4`` of a ResNet, or the last block but one of a transformer.
        stdev (float, optional): Standard deviation of the noise, as for :class:`BoundaryEnergy`. Default: None, a tenth
            of the range of each image's values.
        reshape_transform (Callable, optional): Makes a grid ``(N, C, h, w)`` of what the layer returns, for token grids
            (ViT: ``lambda x: x[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)``) and channels that come last (Swin:
            ``lambda x: x.permute(0, 3, 1, 2)``). It may choose and permute values, and not compute with them. Default:
            None, the output of the layer is such a grid.
        generator (torch.Generator, optional): Source of the noise, as for :class:`BoundaryEnergy`. Default: None

    Raises:

        BoundaryTypeError: If the model is not callable, the layer is no module, or arguments have the wrong type.
        BoundaryValueError: If ``stdev`` is negative, infinite or zero.

    Examples::

        >>> import torch
        >>> from captum_boundary import BoundaryGradCam
        >>> _ = torch.manual_seed(0)
        >>> features = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU())
        >>> head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4))
        >>> model = torch.nn.Sequential(features, head).eval()
        >>> images = torch.rand(2, 3, 16, 16)
        >>> maps = BoundaryGradCam(model, features).attribute(images)
        >>> maps.shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        stdev: float | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(forward_func)
        if not isinstance(layer, nn.Module):
            raise BoundaryTypeError(
                f"layer must be a torch.nn.Module of the model, such as model.layer4, but it is {type(layer).__name__}."
            )
        if reshape_transform is not None and not callable(reshape_transform):
            raise BoundaryTypeError(
                f"reshape_transform must be a function of the layer's output, but it is "
                f"{type(reshape_transform).__name__}."
            )
        self.energy = BoundaryEnergy(forward_func, stdev, generator=generator)
        self.layer = layer
        self.stdev = stdev
        self.reshape_transform = reshape_transform

    @captum_method
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        n_samples: int = 24,
        energy: str = "common",
        width: float | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> TensorOrTupleOfTensorsGeneric:
        r"""Boundary energy times Grad-CAM, for every pixel.

        Args:

            inputs (Tensor): Images ``(N, C, H, W)``, floating point.
            target (int, tuple, Tensor or list, optional): Class to explain, as :meth:`BoundarySearch.find` takes it.
                Default: None, the predicted class of each image.
            additional_forward_args (Any, optional): Further arguments of ``forward_func``, given after ``inputs``.
                Tensors with N entries follow their images. Default: None
            n_samples (int, optional): Noisy copies of every image, as for :class:`BoundaryEnergy`. Default: 24
            energy (str, optional): ``"common"`` or ``"total"``, as for :class:`BoundaryEnergy`. Default: ``"common"``
            width (float, optional): Standard deviation, in pixels, of the window in which energy is averaged. Default:
                None, a 75th of the width of the image, and at least a pixel.
            internal_batch_size (int, optional): Images and copies that pass through the model at once. Default: None,
                as many as fit.
            show_progress (bool, optional): Show a progress bar, in copies of all images. Default: False

        Returns:

            - **attributions** (*Tensor*): Maps shaped like ``inputs``, float32 or better. Common energy may be a little
              below zero where nothing is common, and so may they.

        Raises:

            BoundaryTypeError: For arguments of the wrong type.
            BoundaryValueError: For inputs that are no images; for a layer that is called never or several times in a
                pass, or whose output is no grid with the proportions of the image; for a ``reshape_transform`` that
                mixes channels with positions; and for whatever :class:`BoundaryEnergy` refuses.
        """
        tensors = check_inputs(inputs)
        if len(tensors) > 1 or tensors[0].ndim != 4:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            way_out = (
                "Add a batch dimension: inputs[None]."
                if len(tensors) == 1 and tensors[0].ndim == 3
                else "Give other inputs of the model as additional_forward_args."
            )
            raise BoundaryValueError(
                f"inputs must be one Tensor of images (N, C, H, W), but their shapes are {shapes}. {way_out}"
            )
        check_count("internal_batch_size", internal_batch_size, optional=True)
        (images,) = tensors
        cam, classes = self._grad_cam(images, target, additional_forward_args, internal_batch_size)
        width = max(1.0, images.shape[3] / _WINDOWS_PER_WIDTH) if width is None else width
        energies = self.energy.attribute(
            images,
            classes,
            additional_forward_args,
            n_samples=n_samples,
            energy=energy,
            width=width,
            internal_batch_size=internal_batch_size,
            show_progress=show_progress,
        )
        maps: TensorOrTupleOfTensorsGeneric = format_output(is_tuple(inputs), (energies * cam,))
        return maps

    def _grad_cam(
        self, images: Tensor, target: TargetType, additional_forward_args: object, internal_batch_size: int | None
    ) -> tuple[Tensor, Tensor]:
        """Grad-CAM ``(N, 1, H, W)``, not negative, and the classes ``(N,)`` that it explains."""
        n_images = len(images)
        model = Model(self.forward_func, n_images, additional_forward_args)

        def scores_of(rows: slice) -> tuple[Tensor, Any]:
            return self._scores_and_activations(model, images, rows)

        with geometry(), watch_repeatability(self.forward_func, warns=False):
            size = internal_batch_size or points_at_once(
                n_images, (images[:2],), self.forward_func, lambda: scores_of(slice(0, 2))
            )
            parts, classes = [], []
            for rows in slices(n_images, size):
                scores, activations = scores_of(rows)
                wanted = resolve_target(target_of_examples(target, n_images, rows), scores.detach(), model.is_binary)
                with torch.enable_grad():
                    chosen = scores.gather(1, wanted[:, None])
                    if model.is_binary:  # the one output is the margin, up to its sign
                        chosen = chosen - scores.gather(1, 1 - wanted[:, None])
                    parts.append(self._weighted(activations, chosen.sum(), images.shape[2:], len(scores)))
                classes.append(wanted)
        return torch.cat(parts), torch.cat(classes)

    def _scores_and_activations(self, model: Model, images: Tensor, rows: slice) -> tuple[Tensor, Any]:
        with outputs_recorded(self.layer) as kept:
            scores, _ = model.differentiable_scores((images[rows],), rows)
        if len(kept) != 1:
            times = f"{len(kept)} times" if kept else "not"
            raise BoundaryValueError(
                f"The layer, {type(self.layer).__name__}, must be called once in a pass, but it was {times} called. "
                "Give a module of this very model, the last that has positions."
            )
        return scores, kept[0]

    def _weighted(self, activations: Any, score: Tensor, image: torch.Size, n_images: int) -> Tensor:
        """The activations, weighted by their mean gradients over positions (equations 1 and 2 of Grad-CAM)."""
        grid = grid_of(activations, self.reshape_transform, image, n_images)
        leaves, spec = tree_flatten(activations)
        moved = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not moved or not score.requires_grad:
            raise BoundaryValueError(
                "The layer's output carries no gradient, without which there is no Grad-CAM: the model runs under "
                "torch.no_grad(), detaches, or the layer does not look at the images."
            )
        found = iter(torch.autograd.grad(score, moved, materialize_grads=True))
        gradients = [next(found) if isinstance(leaf, Tensor) and leaf.requires_grad else leaf for leaf in leaves]
        slopes = tree_unflatten(gradients, spec)
        slopes = slopes if self.reshape_transform is None else self.reshape_transform(slopes)
        grid, slopes = (
            values.detach().to(torch.promote_types(values.dtype, torch.float32)) for values in (grid, slopes)
        )
        maps = (slopes.mean(dim=(2, 3), keepdim=True) * grid).sum(dim=1, keepdim=True).relu()
        return functional.interpolate(maps, image, mode="bilinear", align_corners=False)
