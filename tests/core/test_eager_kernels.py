"""Kernels with second derivatives: the same numbers, chosen for one model or thread, or put back by the last one."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from captum_boundary._core.eager_kernels import math_attention, native_recurrence

MASKS = {
    "no mask": None,
    "boolean mask": torch.tensor([[True, False, True, True]]).repeat(3, 1),
    "added mask": torch.tensor([[0.0, 1.0, -2.0, 0.5]]).repeat(3, 1),
}


def heads() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 2, 3, 8), (2, 2, 4, 8), (2, 2, 4, 8)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_is_the_same_and_has_second_derivatives(mask, scale, is_causal):
    if mask is not None and is_causal:
        pytest.skip("one or the other")
    mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    expected = scaled_dot_product_attention(*heads(), attn_mask=mask, is_causal=is_causal, scale=scale)
    inputs = heads()
    with math_attention(nn.Identity()):
        result = scaled_dot_product_attention(*inputs, attn_mask=mask, is_causal=is_causal, scale=scale)
    torch.testing.assert_close(result, expected)
    gradients = torch.autograd.grad(result.square().sum(), inputs, create_graph=True)
    assert torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs[0])[0].abs().amax() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_under_autocast_is_the_same(dtype):
    query, key, value = (tensor.detach().float() for tensor in heads())
    mask = MASKS["added mask"]
    with torch.autocast("cpu", dtype):
        expected = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        with math_attention(nn.Identity()):
            result = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert result.dtype == expected.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)


def test_attention_of_exported_models_and_modules_has_second_derivatives():
    layer = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64).eval()
    tokens = heads()[0][:, 0].detach().repeat(1, 1, 1)

    class Attends(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scaled_dot_product_attention(x, x, x)

    exported = torch.export.export(Attends(), (tokens,)).module()
    for model in (lambda x: layer(x, x, x, need_weights=False)[0], exported):
        x = tokens.clone().requires_grad_()
        with math_attention(nn.Identity()):
            result = model(x)
        torch.testing.assert_close(result, model(x))
        (gradient,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
        assert torch.autograd.grad(gradient.square().sum(), x)[0].abs().amax() > 0


def test_attention_of_other_threads_is_left_alone():
    seen = []

    def look() -> None:
        cuda = torch.backends.cuda
        mode = torch.overrides._get_current_function_mode_stack()
        seen.append((cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), mode))

    with math_attention(nn.Identity()):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [(True, True, [])]


def test_cudnn_is_put_back_by_the_last_thread_that_needs_it():
    layer, inside, leave = nn.LSTM(2, 2), threading.Event(), threading.Event()

    def first() -> None:
        with native_recurrence(layer):
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(20)
    with native_recurrence(layer):
        leave.set()
        thread.join()
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled
