"""The certificate of randomized smoothing, where the distance to the boundary is known or bracketed."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest, norm
from torch import nn

from captum_boundary import NearestBoundary, SmoothedModel, certified_radius
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

WEIGHT = torch.tensor([[1.2], [-0.5]], dtype=torch.float64)  # of length 1.3


def line(x):
    return (x @ WEIGHT)[:, 0]


def probit(x):
    """Log-odds of a probability that is a normal distribution function: so is its mean under noise."""
    return torch.logit(torch.special.ndtr(line(x)))


def at_distance(distance):
    return distance * WEIGHT.T / 1.3


def violations(model, decision, radius, alpha, n_runs, distance):
    """How often the certificate exceeds the ``radius`` that infinitely many votes would give, and its mean."""
    smoothed, generator = SmoothedModel(model, 0.5), torch.Generator().manual_seed(0)
    x = at_distance(distance)
    certified = torch.cat(
        [
            certified_radius(
                smoothed, x, n_samples=200, alpha=alpha, decision=decision, generator=generator, n_selection=20
            ).radius
            for _ in range(n_runs)
        ]
    )
    return int((certified > radius).sum()), certified.mean().item()


@pytest.mark.parametrize("distance", [0.15, 0.6])
@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_the_distance_of_a_linear_boundary_is_hardly_ever_exceeded(distance, alpha):
    n_wrong, mean = violations(line, "votes", distance, alpha, 400, distance)
    assert binomtest(n_wrong, 400, alpha, alternative="greater").pvalue > 1e-3
    assert mean > 0.2 * distance


def test_the_radius_of_mean_probabilities_is_hardly_ever_exceeded():
    distance, alpha = 0.6, 0.1
    p = norm.cdf(1.3 * distance / math.sqrt(1 + (0.5 * 1.3) ** 2))
    radius = 0.5 * norm.ppf(p)
    assert radius < distance
    n_wrong, mean = violations(probit, "probabilities", radius, alpha, 400, distance)
    assert binomtest(n_wrong, 400, alpha, alternative="greater").pvalue > 1e-3
    assert mean > 0.5 * radius


def test_the_test_of_coverage_would_notice():
    n_wrong, _ = violations(line, "votes", 0.9 * 0.6, 0.1, 400, 0.6)
    assert binomtest(n_wrong, 400, 0.1, alternative="greater").pvalue < 1e-3


def test_many_votes_come_near_to_the_distance():
    x = torch.cat([at_distance(d) for d in (0.1, -0.3, 0.8)])
    certificate = certified_radius(SmoothedModel(line, 0.5, n_samples=1000), x, n_samples=200_000, alpha=0.001)
    torch.testing.assert_close(certificate.radius, torch.tensor([0.1, 0.3, 0.8]).double(), rtol=0.06, atol=0)
    assert (certificate.radius < torch.tensor([0.1, 0.3, 0.8])).all()
    assert certificate.target.tolist() == [1, 0, 1]
    torch.testing.assert_close(0.5 * torch.special.ndtri(certificate.p_lower), certificate.radius)


def test_a_certain_model_has_the_largest_radius_that_votes_can_give():
    certificate = certified_radius(SmoothedModel(lambda x: x.sum(dim=1) * 0 + 1, 0.5), torch.zeros(2, 3))
    p = 0.001 ** (1 / 1000)
    assert certificate.p_lower.tolist() == pytest.approx([p, p])
    assert certificate.radius.tolist() == pytest.approx([0.5 * norm.ppf(p)] * 2, rel=1e-5)
    assert certificate.radius[0] < 0.5 * 2.47


@pytest.mark.parametrize(("alpha", "n_samples"), [(0.001, 10), (0.5, 2), (0.25, 3), (0.9, 1)])
def test_the_fewest_votes_that_are_accepted_can_certify(alpha, n_samples):
    certificate = certified_radius(
        SmoothedModel(lambda x: x.sum(dim=1) * 0 + 1, 0.5), torch.zeros(1, 3), n_samples=n_samples, alpha=alpha
    )
    assert certificate.radius.item() > 0


def test_it_abstains_on_the_boundary_and_where_no_class_has_half_of_the_votes():
    on_the_line = certified_radius(SmoothedModel(line, 0.5), at_distance(0.0))
    assert on_the_line.abstained.tolist() == [True]
    assert on_the_line.radius.tolist() == [0.0]
    assert on_the_line.p_lower.item() < 0.5
    in_a_corner = certified_radius(SmoothedModel(lambda x: x, 0.5), torch.zeros(1, 4))
    assert in_a_corner.abstained.tolist() == [True]


def networks(n_networks):
    with torch.random.fork_rng():
        for seed in range(n_networks):
            torch.manual_seed(seed)
            yield nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 3)).double().eval()


def far_end(smoothed, inputs, certificate, boundary, decision, **options):
    """Least distance in the direction of the boundary point at which another class is certified."""
    ends = torch.full_like(boundary.distance, torch.inf)
    for factor in (1.0, 1.1, 1.25, 1.5, 2.0, 3.0):
        rows = (boundary.found & ~certificate.abstained & ends.isinf()).nonzero().flatten()  # none is needed of others
        if len(rows) == 0:
            break
        points = inputs[rows] + factor * (boundary.points[rows] - inputs[rows])
        there = certified_radius(smoothed, points, decision=decision, **options)
        other = rows[~there.abstained & (there.target != certificate.target[rows])]
        ends[other] = factor * boundary.distance[other]
    return ends


@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
@pytest.mark.parametrize("n_networks", [4, pytest.param(20, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("decision", ["votes", "probabilities"])
def test_no_certified_point_beyond_the_boundary_is_nearer(decision, n_networks):
    """Seen from both ends, with the same classifier: nothing beyond its boundary is nearer than the radius."""
    n_cases = n_bracketed = 0
    for network in networks(n_networks):
        with torch.no_grad():
            network[2].weight.mul_(10)
            network[2].bias.mul_(10)
        x = torch.randn(50, 2, generator=torch.Generator().manual_seed(n_cases)).double()
        smoothed = SmoothedModel(network, 0.2, n_samples=64, average="probabilities")
        certificate = certified_radius(smoothed, x, n_samples=1000, alpha=1e-5, decision=decision)
        boundary = NearestBoundary(smoothed, budget=5, max_distance=3).find(x, certificate.target)
        ends = far_end(smoothed, x, certificate, boundary, decision, n_samples=1000, alpha=1e-5)
        assert (certificate.radius < ends).all()
        n_cases += len(x)
        n_bracketed += int((ends.isfinite() & ~certificate.abstained).sum())
    assert n_cases == 50 * n_networks
    assert n_bracketed > 0.3 * n_cases


def test_a_radius_is_below_the_distance_found_with_many_copies():
    """As many fixed copies are the classifier itself, up to what their number leaves open."""
    for network in networks(3):
        x = torch.randn(10, 2, generator=torch.Generator().manual_seed(1)).double()
        smoothed = SmoothedModel(network, 0.2, n_samples=4000, average="probabilities")
        certificate = certified_radius(smoothed, x, n_samples=4000, decision="probabilities")
        boundary = NearestBoundary(smoothed, budget=20).find(x, certificate.target)
        assert (certificate.radius <= boundary.distance * 1.02).all()


def bracketed(model, images, stdev):
    """How many distances are known from both ends, when none of the lower ends is above the upper one."""
    smoothed = SmoothedModel(model, stdev, n_samples=16, average="probabilities", internal_batch_size=64)
    certificate = certified_radius(smoothed, images, n_samples=100, decision="probabilities")
    boundary = NearestBoundary(smoothed, budget=5).find(images, certificate.target)
    ends = far_end(smoothed, images, certificate, boundary, "probabilities", n_samples=100, n_selection=20)
    assert (certificate.radius < ends).all()
    return int((ends.isfinite() & ~certificate.abstained).sum())


def test_an_image_classifier_is_bracketed(zoo):
    model = zoo.cifar_resnet20()
    images, _ = zoo.first_correct(model, *zoo.load_images("cifar10_test500"), 3)
    assert bracketed(model, images, 0.03) > 0


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::captum_boundary.BoundaryNotFoundWarning")
@pytest.mark.parametrize(
    ("network", "data", "first", "last", "stdev"),
    [
        ("cifar_resnet20", "cifar10_test500", 0, 50, 0.03),
        ("cifar_resnet20", "cifar10_test500", 50, 100, 0.03),
        ("imagenet_squeezenet", "imagenet_sample50", 0, 4, 0.02),
    ],
)
def test_many_images_are_bracketed(zoo, network, data, first, last, stdev):
    model = getattr(zoo, network)()
    images, _ = zoo.first_correct(model, *zoo.load_images(data), last)
    n_bracketed = sum(bracketed(model, part, stdev) for part in images[first:].split(20))
    assert n_bracketed >= (last - first) / 4


def test_results_do_not_depend_on_the_batch_or_its_parts():
    network = next(networks(1))
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).double()
    for decision in ("votes", "probabilities"):
        whole = certified_radius(SmoothedModel(network, 0.3), x, n_samples=77, alpha=0.1, decision=decision)
        for size in (1, 5, 16, 1000):
            parts = certified_radius(
                SmoothedModel(network, 0.3, internal_batch_size=size),
                x[2:5],
                n_samples=77,
                alpha=0.1,
                decision=decision,
            )
            for name in ("radius", "target", "abstained", "p_lower"):
                assert torch.equal(getattr(parts, name), getattr(whole, name)[2:5])


def test_parts_bound_what_passes_through_the_model():
    rows = []
    model = SmoothedModel(lambda x: rows.append(len(x)) or x.sum(dim=1), 0.3, internal_batch_size=5)
    certified_radius(model, torch.zeros(3, 2), n_samples=70)
    assert max(rows) <= 5
    assert sum(rows) == 3 * (70 + 100)


def test_tuples_and_arguments_follow_their_examples():
    x, y, sign = at_distance(0.5), at_distance(0.3), torch.tensor([1.0])
    x, y, sign = torch.cat([x, x]), torch.cat([y, -y]), torch.tensor([1.0, -1.0])

    def model(x, y, sign):
        return line(x + y) * sign

    certificate = certified_radius(
        SmoothedModel(model, (0.5, 0.5)), (x, y), n_samples=50_000, additional_forward_args=sign
    )
    expected = torch.tensor([0.8, 0.2]).double() / math.sqrt(2)
    assert certificate.target.tolist() == [1, 0]
    torch.testing.assert_close(certificate.radius, expected, rtol=0.1, atol=0)
    assert (certificate.radius < expected).all()


def test_precision_and_random_states():
    state = torch.get_rng_state()
    x = torch.zeros(1, 2, dtype=torch.bfloat16)
    certificate = certified_radius(SmoothedModel(lambda x: x.float().sum(dim=1) + 1, 0.1), x)
    assert certificate.radius.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    assert not certificate.radius.requires_grad


def test_training_mode_is_warned_of_and_leaves_no_trace():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="training mode") as shown:
        certified_radius(SmoothedModel(model, 0.3), torch.ones(3, 2), n_samples=70)
    assert [warning.filename for warning in shown] == [__file__]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    certified_radius(SmoothedModel(model.eval(), 0.3), torch.ones(3, 2), n_samples=70)


def test_progress_is_shown_in_votes_if_wanted(capsys):
    smoothed = SmoothedModel(line, 0.5)
    certified_radius(smoothed, at_distance(0.5), n_samples=70, n_selection=20)
    assert capsys.readouterr().err == ""
    certified_radius(smoothed, at_distance(0.5), n_samples=70, n_selection=20, show_progress=True)
    assert "90/90" in capsys.readouterr().err


def test_votes_are_new_ones():
    """Neither those of the smoothed model, nor of an earlier call with the same generator."""
    seen = []
    smoothed = SmoothedModel(lambda x: seen.append(x) or x.sum(dim=1), 0.3, n_samples=32)
    x, generator = torch.zeros(1, 20), torch.Generator().manual_seed(0)
    smoothed(x)
    for _ in range(2):
        certified_radius(smoothed, x, n_samples=100, generator=generator)
    vectors = torch.cat(seen).double()
    alike = torch.corrcoef(vectors).abs() - torch.eye(len(vectors)).double()
    pairs = torch.arange(32).reshape(-1, 2)
    alike[pairs[:, 0], pairs[:, 1]] = alike[pairs[:, 1], pairs[:, 0]] = 0
    assert len(vectors) == 32 + 2 * 200
    assert alike.max() < 0.95


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"smoothed": line}, BoundaryTypeError, r"smoothed must be a SmoothedModel, .* Wrap the model"),
        ({"n_samples": 0}, BoundaryValueError, "n_samples must be a positive integer"),
        ({"n_samples": 9}, BoundaryValueError, "n_samples must be at least 10 .* alpha=0.001, but it is 9"),
        ({"n_samples": 1, "alpha": 0.5}, BoundaryValueError, "n_samples must be at least 2 "),
        ({"n_selection": 2.5}, BoundaryValueError, "n_selection must be a positive integer"),
        ({"alpha": 0}, BoundaryValueError, "alpha must be a number between 0 and 1, exclusive, but it is 0"),
        ({"alpha": 1.0}, BoundaryValueError, "alpha must be"),
        ({"alpha": "small"}, BoundaryValueError, "alpha must be"),
        ({"decision": "scores"}, BoundaryValueError, "decision must be 'votes' or 'probabilities', but it is 'scores'"),
        ({"generator": 1}, BoundaryTypeError, "generator must be"),
        ({"inputs": torch.full((1, 2), torch.nan)}, BoundaryValueError, "NaN"),
        (
            {"smoothed": SmoothedModel(lambda x, y: x, (0.1, 0.0)), "inputs": (torch.zeros(1, 2),) * 2},
            BoundaryValueError,
            "one standard deviation",
        ),
        ({"smoothed": SmoothedModel(lambda x, y: x, (0.1, 0.1))}, BoundaryValueError, "stdev is for 2 input"),
        ({"inputs": (torch.zeros(1, 2),) * 2}, BoundaryValueError, "stdev is for 1 input"),
        ({"smoothed": SmoothedModel(lambda x: x / 0, 0.1)}, BoundaryValueError, "NaN or infinite scores"),
    ],
)
def test_impossible_arguments_are_refused(options, error, message):
    smoothed = SmoothedModel(lambda x: x.double() @ WEIGHT, 0.1)
    with pytest.raises(error, match=message):
        certified_radius(**{"smoothed": smoothed, "inputs": torch.zeros(1, 2), **options})
