"""The search and the attributions on pretrained networks and real images."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from captum_boundary import BoundaryIntegratedGradients, BoundarySaliency, NearestBoundary


@pytest.fixture(scope="module")
def resnet20(zoo):
    return zoo.cifar_resnet20()


@pytest.fixture(scope="module")
def cifar(zoo, resnet20):
    """Images that the network classifies correctly, and their labels."""
    return zoo.first_correct(resnet20, *zoo.load_images("cifar10_test500"), 32)


@pytest.fixture(scope="module")
def cifar_boundary(resnet20, cifar):
    return NearestBoundary(resnet20, bounds=(0, 1), budget=40).find(cifar[0])


@pytest.fixture(scope="module")
def squeezenet(zoo):
    return zoo.imagenet_squeezenet()


@pytest.fixture(scope="module")
def pictures(zoo):
    return zoo.load_images("imagenet_sample50")[0][:4]


@pytest.fixture(scope="module")
def picture_boundary(squeezenet, pictures):
    return NearestBoundary(squeezenet, bounds=(0, 1), budget=8).find(pictures)


def margins(model, points, target):
    """Score of the target less the largest other one, each point in a batch of its own."""
    with torch.no_grad():
        scores = torch.cat([model(point) for point in points.split(1)])
    others = scores.scatter(1, target[:, None], -torch.inf)
    return scores.gather(1, target[:, None]).squeeze(1) - others.amax(dim=1)


def test_resnet20_has_its_published_accuracy(zoo, resnet20):
    images, labels = zoo.load_images("cifar10_test500")
    with torch.no_grad():
        accuracy = (resnet20(images[:200]).argmax(dim=1) == labels[:200]).float().mean()
    assert accuracy > 0.88


def test_every_cifar_image_gets_a_point_just_beyond_its_boundary(resnet20, cifar, cifar_boundary):
    images, labels = cifar
    assert cifar_boundary.found.all()
    assert torch.equal(cifar_boundary.target, labels)
    assert cifar_boundary.points.min() >= 0
    assert cifar_boundary.points.max() <= 1
    margin = margins(resnet20, cifar_boundary.points, labels)
    assert (margin < 0).all()
    overshoot = margin.abs() / margins(resnet20, images, labels)
    assert overshoot.min() >= 1e-5
    assert overshoot.max() <= 1e-3
    assert (cifar_boundary.adversarial != labels).all()


def test_cifar_points_are_as_near_as_those_of_ddn(resnet20, cifar, cifar_boundary):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox imports a deprecated name of scipy
        foolbox = pytest.importorskip("foolbox")
    images, labels = cifar
    model = foolbox.PyTorchModel(resnet20, bounds=(0, 1))
    _, points, success = foolbox.attacks.DDNAttack(steps=100)(model, images, labels, epsilons=None)
    assert success.all()
    assert cifar_boundary.distance.mean() <= (points - images).flatten(1).norm(dim=1).mean()


def test_the_search_keeps_to_its_budget(cifar_boundary):
    assert cifar_boundary.n_gradient.max() <= 40
    assert cifar_boundary.n_forward.double().mean() <= 100


@pytest.mark.parametrize(("norm", "attack", "slack"), [(math.inf, "LInfFMNAttack", 1.1), (1, "L1FMNAttack", 1.2)])
def test_other_norms_are_as_near_as_foolbox_with_more_gradients(resnet20, cifar, norm, attack, slack):
    foolbox = pytest.importorskip("foolbox")
    images, labels = (part[:6] for part in cifar)
    boundary = NearestBoundary(resnet20, bounds=(0, 1), norm=norm, budget=40).find(images)
    assert boundary.found.all()
    model = foolbox.PyTorchModel(resnet20, bounds=(0, 1))
    _, points, success = getattr(foolbox.attacks, attack)(steps=100)(model, images, labels, epsilons=None)
    assert success.all()
    distance = torch.linalg.vector_norm((points - images).flatten(1), ord=norm, dim=1)
    assert boundary.distance.mean() <= slack * distance.mean()


def test_a_larger_budget_finds_nearer_points(resnet20, cifar, cifar_boundary):
    small = NearestBoundary(resnet20, bounds=(0, 1), budget=10).find(cifar[0])
    assert small.found.all()
    assert small.n_gradient.max() <= 10
    assert cifar_boundary.distance.mean() < small.distance.mean()


def test_every_picture_gets_a_boundary_point(squeezenet, pictures, picture_boundary):
    assert picture_boundary.found.all()
    assert picture_boundary.n_gradient.max() <= 8
    assert (margins(squeezenet, picture_boundary.points, picture_boundary.target) < 0).all()


def test_saliency_of_pictures_at_the_boundary(squeezenet, pictures, picture_boundary):
    saliency = BoundarySaliency(squeezenet).attribute(pictures, boundary=picture_boundary)
    assert saliency.shape == pictures.shape
    assert saliency.isfinite().all()
    assert (saliency.flatten(1).norm(dim=1) > 0).all()


def test_integrated_gradients_of_pictures_are_complete(squeezenet, pictures, picture_boundary):
    attributions, delta = BoundaryIntegratedGradients(squeezenet).attribute(
        pictures, boundary=picture_boundary, return_convergence_delta=True, n_steps=25, internal_batch_size=4
    )
    assert attributions.shape == pictures.shape
    assert attributions.isfinite().all()
    with torch.no_grad():
        drop = squeezenet(pictures) - squeezenet(picture_boundary.points)
    drop = drop.gather(1, picture_boundary.target[:, None]).squeeze(1)
    assert (delta / drop).abs().median() < 0.01
