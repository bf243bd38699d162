"""Values that a mask holds in place."""

from __future__ import annotations

import importlib.util
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from captum_boundary import (
    AggregatedBoundaryNormals,
    BoundaryIntegratedGradients,
    BoundaryNotFoundWarning,
    NearestBoundary,
    PGDBoundary,
)
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError
from captum_boundary.search import ClosestBoundary, FoolboxBoundary

RADII = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)


def nearest(model, **options):
    return NearestBoundary(model, budget=100, **options)


def pgd(model, **options):
    return PGDBoundary(model, epsilons=RADII, attack_steps=20, random_start=False, **options)


def closest(model, **options):
    return ClosestBoundary([nearest(model, **options), pgd(model, **options)])


def foolbox(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox imports a deprecated name of scipy
        from foolbox.attacks import DDNAttack
    return FoolboxBoundary(model, DDNAttack(steps=100), **{"bounds": (-8.0, 8.0), **options})


needs_foolbox = pytest.mark.skipif(importlib.util.find_spec("foolbox") is None, reason="needs foolbox")
EXACT = [pytest.param(nearest, id="nearest"), pytest.param(closest, id="closest")]
ALL = [*EXACT, pytest.param(pgd, id="pgd"), pytest.param(foolbox, id="foolbox", marks=needs_foolbox)]
every_norm = pytest.mark.parametrize("norm", [2, math.inf, 1])


@pytest.fixture
def numbers() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def inputs(numbers) -> Tensor:
    return torch.randn(6, 8, generator=numbers).double()


@pytest.fixture
def mask(numbers) -> Tensor:
    mask = torch.rand(6, 8, generator=numbers) < 0.8
    mask[:, 0] = True
    return mask


@pytest.fixture
def linear() -> nn.Module:
    model = nn.Linear(8, 3).double()
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(4))
    return model


@pytest.fixture
def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    for parameter in model.parameters():  # hardly bent: with 0.2 several points are nearest in l1
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(5))
    return model.eval()


def closed_form(model: nn.Linear, inputs: Tensor, mask: Tensor, norm: float) -> Tensor:
    """Distances of linear boundaries by the dual norm of what moves."""
    scores = model(inputs).detach()
    target = scores.argmax(dim=1)
    margins = scores.gather(1, target[:, None]) - scores
    normals = (model.weight[target][:, None] - model.weight).detach() * mask[:, None]
    dual = {2: 2, math.inf: 1, 1: math.inf}[norm]
    distances = margins / torch.linalg.vector_norm(normals, ord=dual, dim=2)
    return distances.scatter(1, target[:, None], torch.inf).amin(dim=1)


@every_norm
@pytest.mark.parametrize("make", ALL)
def test_held_values_are_equal_to_the_last_bit(make, norm, network, inputs, mask):
    boundary = make(network, norm=norm).find(inputs, mask=mask)
    assert boundary.found.all()
    assert torch.equal(boundary.points[~mask], inputs[~mask])
    assert (boundary.points != inputs)[mask].any()
    assert not (network(boundary.points).argmax(1) == network(inputs).argmax(1)).any()
    moved = torch.linalg.vector_norm(boundary.points - inputs, ord=norm, dim=1)
    torch.testing.assert_close(boundary.distance, moved)


@every_norm
@pytest.mark.parametrize("make", EXACT)
def test_distances_of_linear_models_in_closed_form(make, norm, linear, inputs, mask):
    boundary = make(linear, norm=norm).find(inputs, mask=mask)
    torch.testing.assert_close(boundary.distance, closed_form(linear, inputs, mask, norm), rtol=1e-3, atol=0)


@every_norm
@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("n_rows", [2, pytest.param(6, marks=pytest.mark.exhaustive)])
def test_as_near_as_in_the_model_of_the_values_that_move(make, norm, network, inputs, mask, n_rows):
    boundary = make(network, norm=norm).find(inputs, mask=mask)
    for row, (x, free) in enumerate(zip(inputs[:n_rows], mask[:n_rows], strict=True)):

        def restricted(part: Tensor, x: Tensor = x, free: Tensor = free) -> Tensor:
            return network(x.repeat(len(part), 1).index_put((torch.arange(len(part))[:, None], free.nonzero().T), part))

        alone = make(restricted, norm=norm).find(x[free][None])
        torch.testing.assert_close(boundary.distance[row], alone.distance[0], rtol=1e-3, atol=0)


def test_together_with_bounds(linear, inputs, mask):
    inputs = inputs.clamp(-1, 1)
    boundary = nearest(linear, bounds=(-1.5, 1.5)).find(inputs, mask=mask)
    assert torch.equal(boundary.points[~mask], inputs[~mask])
    found = boundary.points[boundary.found]
    assert (found.abs() <= 1.5).all()
    unlimited = nearest(linear).find(inputs, mask=mask)
    assert (boundary.distance >= unlimited.distance * (1 - 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_masks_of_numbers_of_other_shapes_and_lower_precision(dtype, network, inputs):
    inputs = inputs.to(dtype)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1])
    boundary = nearest(network.to(dtype)).find(inputs, mask=mask)
    assert boundary.found.any()
    assert torch.equal(boundary.points[:, [1, 4]], inputs[:, [1, 4]])
    assert torch.equal(boundary.points, nearest(network).perturb(inputs, mask=mask.bool().expand(6, 8)))


def test_tuples_take_a_mask_for_each_input(inputs, mask, network):
    pair = (inputs[:, :3], inputs[:, 3:])

    def model(first: Tensor, second: Tensor) -> Tensor:
        return network(torch.cat([first, second], dim=1))

    boundary = nearest(model).find(pair, mask=(None, torch.zeros(5)))
    assert torch.equal(boundary.points[1], pair[1])
    whole = nearest(network).find(inputs, mask=torch.arange(8) < 3)
    torch.testing.assert_close(boundary.distance, whole.distance, rtol=1e-3, atol=0)


def test_a_batch_is_searched_as_one_by_one(network, inputs, mask):
    together = nearest(network).find(inputs, mask=mask)
    alone = [nearest(network).find(inputs[[row]], mask=mask[[row]]).points for row in range(len(inputs))]
    torch.testing.assert_close(together.points, torch.cat(alone), rtol=1e-6, atol=1e-6)


def test_nothing_is_found_where_nothing_may_move(network, inputs):
    mask = torch.ones(6, 1)
    mask[2] = 0
    with pytest.warns(BoundaryNotFoundWarning, match=r"row\(s\) 2:"):
        boundary = nearest(network).find(inputs, mask=mask)
    assert boundary.found.tolist() == [True, True, False, True, True, True]


def test_attributions_of_held_values_are_zero(network, inputs, mask):
    attributions = BoundaryIntegratedGradients(network).attribute(inputs, mask=mask)
    assert (attributions[~mask] == 0).all()
    assert (attributions[mask] != 0).any()


@pytest.mark.parametrize("options", [{}, {"n_boundaries": 1}, {"sampling": "random", "n_boundaries": 2}])
@pytest.mark.parametrize("make", [nearest, closest])
def test_normals_lie_among_the_values_that_move(make, options, network, inputs, mask):
    if make is closest and "sampling" in options:
        pytest.skip("PGDBoundary cannot start in random directions")
    normals = AggregatedBoundaryNormals(network, make(network))
    maps, boundaries = normals.attribute(inputs, mask=mask, return_boundary=True, **options)
    held = ~mask[:, None].expand_as(boundaries.points)
    assert torch.equal(boundaries.points[held], inputs[:, None].expand_as(boundaries.points)[held])
    assert (maps[~mask] == 0).all()
    lengths = torch.linalg.vector_norm(boundaries.normals, dim=2)[boundaries.found]
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.mark.parametrize(
    ("shape", "mask_shape", "missing"),
    [
        ((1, 3, 3), (1, 3), "None"),
        ((4, 4, 4), (4, 4), "None"),
        ((2, 2, 2, 2), (2, 2), "None, None"),
        ((2, 5, 3), (2, 5), "None"),
    ],
)
def test_masks_of_the_first_dimensions_are_never_taken_for_the_last(shape, mask_shape, missing):
    """A mask of tokens must not turn into one of the coordinates of their embeddings where the numbers agree."""
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    search = nearest(lambda x: x.flatten(1)[:, :3])
    with pytest.raises(BoundaryValueError, match=rf"first dimensions of inputs.*mask\[\.\.\., {missing}\]\.$"):
        search.find(inputs, mask=torch.ones(mask_shape))
    assert search.find(inputs, mask=torch.ones(mask_shape)[(..., *[None] * (len(shape) - len(mask_shape)))]).found.all()


def test_bad_masks_say_how_to_mend_them(network, inputs):
    search = nearest(network)
    with pytest.raises(BoundaryTypeError, match="mask must be a Tensor, or a tuple of them, but it is str"):
        search.find(inputs, mask="all")
    with pytest.raises(BoundaryValueError, match=r"must be 1 \(or True\) where values may move .* from -1 to 2"):
        search.find(inputs, mask=torch.tensor([-1, 0, 2, 1, 1, 1, 1, 1]))
    with pytest.raises(BoundaryValueError, match=r"not broadcast to inputs of shape \(6, 8\).*mask\[..., None\]"):
        search.find(inputs, mask=torch.ones(6))
    with pytest.raises(BoundaryValueError, match=r"mask holds 2 mask\(s\) for 1 input\(s\)"):
        search.find(inputs, mask=(torch.ones(8), torch.ones(8)))
    with pytest.raises(
        BoundaryValueError, match=r"mask\[1\] .*inputs\[1\] of shape \(6, 3\).*torch.zeros\(1\) holds one"
    ):
        nearest(lambda x, y: network(x)).find((inputs, inputs[:, :3]), mask=torch.ones(8))
    boundary = search.find(inputs)
    with pytest.raises(BoundaryValueError, match=r"the boundary was given\. Give the mask to the search"):
        BoundaryIntegratedGradients(network).attribute(inputs, boundary=boundary, mask=torch.ones(8))
