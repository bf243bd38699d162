"""The largest noise that keeps a prediction, where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from captum_boundary import SmoothedModel, largest_stdev
from captum_boundary.errors import BoundaryTypeError, BoundaryValueError

STDEVS = (0.1, 0.2, 0.4, 0.8, 1.6)


def cosine(x):
    """A binary model of period 2 pi: under noise of variance v its mean is exp(-v / 2) times itself, less a half."""
    return x[:, 0].cos() - 0.5


def islands(x):
    """Class 1 near to 0 and far from 0: stronger noise gives it back what weaker noise takes."""
    return torch.where(x[:, 0].abs() < 0.5, 0.2, torch.where(x[:, 0].abs() < 1.2, -1.0, 1.0))


def test_it_is_what_a_closed_form_says():
    x = torch.tensor([[0.0], [0.8], [1.0], [-0.8]], dtype=torch.float64)
    expected = [max(s for s in STDEVS if math.exp(-(s**2) / 2) * math.cos(value) > 0.5) for value in x[:, 0].tolist()]
    assert expected == [0.8, 0.8, 0.2, 0.8]
    assert largest_stdev(cosine, x, stdevs=STDEVS, n_samples=2000).tolist() == expected


def test_the_smoothed_model_decides_as_it_says():
    model, x = nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 4)), 0.3 * torch.randn(40, 3)
    predicted = model(x).argmax(dim=1)
    for average in ("scores", "probabilities"):
        largest = largest_stdev(model, x, stdevs=STDEVS, average=average)
        for stdev in STDEVS:
            smoothed = SmoothedModel(model, stdev, average=average)
            stands = smoothed(x).argmax(dim=1) == predicted
            assert stands[largest >= stdev].all()
            first_to_fall = [0, *STDEVS].index(stdev)
            assert not stands[largest == torch.tensor([0, *STDEVS][first_to_fall - 1])].any()


def test_a_decision_that_comes_back_is_not_counted():
    x = torch.zeros(1, 1, dtype=torch.float64)
    smoothed = {s: SmoothedModel(islands, s, n_samples=2000)(x).item() > 0 for s in (0.1, 0.8, 2.0)}
    assert smoothed == {0.1: True, 0.8: False, 2.0: True}
    assert largest_stdev(islands, x, stdevs=(2.0, 0.1, 0.8), n_samples=2000).tolist() == [0.1]


def test_training_mode_is_warned_of_and_leaves_no_trace():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="training mode") as shown:
        largest_stdev(model, torch.ones(3, 2))
    assert [warning.filename for warning in shown] == [__file__]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    largest_stdev(model.eval(), torch.ones(3, 2))


def test_progress_is_shown_in_standard_deviations_if_wanted(capsys):
    x = torch.zeros(2, 1)
    largest_stdev(cosine, x, stdevs=STDEVS[:4])
    assert capsys.readouterr().err == ""
    largest_stdev(cosine, x, stdevs=STDEVS[:4], show_progress=True)
    assert "4/4" in capsys.readouterr().err


def test_zero_where_another_class_wins_from_the_start():
    x = torch.zeros(2, 3)
    model = nn.Linear(3, 3)
    nn.init.eye_(model.weight)
    nn.init.zeros_(model.bias)
    x[:, 0] = 1
    assert largest_stdev(model, x, target=[0, 1]).tolist()[1] == 0


def test_tuples_arguments_and_generators_are_passed_on():
    x, y, scale = torch.full((3, 1), 0.2), torch.zeros(3, 2), torch.tensor([1.0, 2.0, 3.0])
    state = torch.get_rng_state()

    def model(x, y, scale):
        return x[:, 0].sub(y.sum(dim=1)).cos() * scale - 0.5 * scale

    generator = torch.Generator().manual_seed(3)
    drawn = largest_stdev(model, (x, y), additional_forward_args=scale, stdevs=STDEVS, generator=generator)
    again = largest_stdev(
        model,
        (x, y),
        additional_forward_args=scale,
        stdevs=STDEVS,
        generator=torch.Generator().manual_seed(3),
        internal_batch_size=5,
    )
    assert torch.equal(drawn, again)
    assert len(set(drawn.tolist())) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        largest_stdev(model, (x[:1], y[:1]), None, scale[:1], stdevs=STDEVS),
        largest_stdev(model, (x, y), None, scale, stdevs=STDEVS)[:1],
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stdevs": ()}, BoundaryValueError, "stdevs must be one or more positive numbers, but they are"),
        ({"stdevs": (0.1, -1)}, BoundaryValueError, "stdevs must be one or more positive numbers"),
        ({"stdevs": 0.1}, BoundaryTypeError, "stdevs must be a sequence of numbers, but it is float"),
        ({"stdevs": "0.1"}, BoundaryTypeError, "stdevs must be a sequence of numbers, but it is str"),
        ({"stdevs": (0.1, "a")}, BoundaryTypeError, "stdevs must be numbers, but they contain str"),
        ({"stdevs": (True,)}, BoundaryTypeError, "stdevs must be numbers, but they contain bool"),
        ({"inputs": torch.zeros(0, 1)}, BoundaryValueError, "at least one example"),
        ({"target": 2}, BoundaryValueError, "target must be None"),
        ({"n_samples": 3}, BoundaryValueError, "n_samples must be even"),
        ({"generator": 1}, BoundaryTypeError, "generator must be"),
    ],
)
def test_impossible_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        largest_stdev(**{"forward_func": cosine, "inputs": torch.zeros(2, 1), **options})
