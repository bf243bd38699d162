"""The crossing of a boundary on a segment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_boundary.search._line_search import find_crossing

thorough = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def crossing(function, min_overshoot=2e-5, max_overshoot=8e-5, n_rows=1, resolution=1e-16):
    """The crossing of ``function`` on [0, 1], and how often the function was evaluated for the slowest row."""
    calls = torch.zeros(n_rows, dtype=torch.long)

    def depth(t, chosen):
        chosen = rows if chosen is None else chosen
        calls[chosen] += 1
        return function(t, chosen)

    rows = torch.arange(n_rows)
    ends = [function(torch.full((n_rows,), float(end), dtype=torch.float64), rows) for end in (0, 1)]
    band = [torch.full((n_rows,), side, dtype=torch.float64) for side in (min_overshoot, max_overshoot)]
    fraction, value = find_crossing(depth, *ends, *band, resolution)
    assert torch.equal(value, function(fraction, rows))
    assert (value < 0).all()
    assert (fraction > 0).all()
    assert (fraction <= 1).all()
    return fraction, value, int(calls.max())


@thorough
@given(power=st.floats(0.2, 6.0), outside=st.floats(1e-3, 1e3))
def test_a_monotone_function_is_crossed_in_few_evaluations(power, outside):
    _, value, calls = crossing(lambda t, rows: 1 - (1 + outside) * t**power)
    assert -8e-5 <= value.item() <= -2e-5
    assert calls <= 30


def test_a_line_is_crossed_at_once():
    fraction, _, calls = crossing(lambda t, rows: 1 - 4 * t)
    assert fraction.item() == pytest.approx(0.25, abs=2e-5)
    assert calls == 1


@thorough
@given(edge=st.floats(0.001, 0.999), inside=st.floats(1e-3, 1e2), outside=st.floats(1e-3, 1e2))
def test_a_jump_is_closed_in_upon(edge, inside, outside):
    def jump(t, rows):
        return torch.where(t < edge, t.new_tensor(inside), t.new_tensor(-outside))

    fraction, value, calls = crossing(jump, resolution=1e-9)
    # One evaluation in three, and later every one, halves the bracket, whatever the function does.
    assert edge <= fraction.item() <= edge + 2e-9
    assert value.item() == -outside
    assert calls <= 60


@thorough
@given(frequency=st.floats(1.0, 40.0), phase=st.floats(0.0, 6.0), size=st.floats(0.1, 3.0))
def test_a_wavy_function_is_crossed_somewhere(frequency, phase, size):
    def wave(t, rows):
        ripple = torch.sin(frequency * t + phase) * t * (1 - t) * size
        return 1 - 2 * t + ripple

    _, value, calls = crossing(wave)
    assert -8e-5 <= value.item() <= -2e-5
    assert calls <= 60


def test_a_point_already_in_the_band_stays():
    fraction, _, calls = crossing(lambda t, rows: 1 - (1 + 5e-5) * t)
    assert fraction.item() == 1
    assert calls == 0


def test_rows_cross_independently():
    edges = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)

    def curves(t, rows):
        return edges[rows] ** 3 - t**3

    together, _, _ = crossing(curves, n_rows=9, min_overshoot=1e-10, max_overshoot=4e-9)
    torch.testing.assert_close(together, edges, rtol=0, atol=1e-6)
    for row in range(9):
        alone, _, _ = crossing(lambda t, rows, row=row: curves(t, rows + row), min_overshoot=1e-10, max_overshoot=4e-9)
        assert alone.item() == together[row].item()
