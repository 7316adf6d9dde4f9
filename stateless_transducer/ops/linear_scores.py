"""Scores of the arcs of a joiner that only adds, ``encoder_logits[t] + decoder_logits[u]``, and their normalizers.

Letters: N utterances, T encoder frames, U tokens, V vocabulary with blank, R rows of any matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stateless_transducer.ops.lattice import refuse_second_derivative

# a sum of exponentials below this may have lost terms to underflow; its inverse still leaves room for products
_SMALLEST_SUM = 1e-280


def linear_scores(
    encoder_logits: Tensor,
    decoder_logits: Tensor,
    next_tokens: Tensor,
    blank: int,
    token_lens: Tensor,
    scales: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Return the smoothed log-probability of the blank and of the next token, both (N, T, U+1), float64.

    Args:
        encoder_logits: (N, T, V).
        decoder_logits: (N, U+1, V).
        next_tokens: (N, U+1), int64, blanks for padding.
        blank: id of the blank.
        token_lens: (N,).
        scales: ``lm_only_scale`` and ``am_only_scale`` of `simple_transducer_loss`.
    """
    N, T, _ = encoder_logits.shape
    # the last axis of all tensors below: blank, next token
    index = torch.stack([torch.full_like(next_tokens, blank), next_tokens], dim=-1)  # (N, U+1, 2)
    # blank first, then all tokens, in one gather: its gradient is as large as the logits
    encoder_index = torch.nn.functional.pad(next_tokens, (1, 0), value=blank)[:, None].expand(N, T, -1)
    from_encoder = encoder_logits.gather(2, encoder_index).double()
    symbol_from_encoder = from_encoder[:, :, 1:]
    from_encoder = torch.stack([from_encoder[:, :, :1].expand_as(symbol_from_encoder), symbol_from_encoder], dim=-1)
    from_decoder = decoder_logits.gather(2, index).double()[:, None]  # (N, 1, U+1, 2)
    lm_only_scale, am_only_scale = scales
    joint_scale = 1 - lm_only_scale - am_only_scale

    normalizer = _linear_normalizer(encoder_logits, decoder_logits)[..., None]
    if joint_scale:
        scores = joint_scale * (from_encoder + from_decoder - normalizer)
    else:
        # zero, but NaN where the normalizer is NaN
        scores = 0 * normalizer.detach()
    if lm_only_scale or am_only_scale:
        is_bad = ~decoder_logits.detach().amax(-1).isfinite()
        lm_only = decoder_logits.masked_fill(is_bad[:, :, None], 0).double().log_softmax(-1)
        if lm_only_scale:
            scores = scores + lm_only_scale * lm_only.gather(2, index)[:, None]
        if am_only_scale:
            used = torch.arange(len(index[0]), device=is_bad.device) <= token_lens[:, None]
            unigram = _log_mean(lm_only, used & ~is_bad)
            normalizer = _linear_normalizer(encoder_logits, unigram.expand(N, 1, -1))[..., None]
            scores = scores + am_only_scale * (from_encoder + unigram[index][:, None] - normalizer)
    blank_scores, symbol_scores = scores.unbind(-1)
    return blank_scores, symbol_scores


def _log_mean(log_probs: Tensor, used: Tensor) -> Tensor:
    """Return the log of the mean over the used rows of (N, U+1, V), (V,); `used` is (N, U+1), bool."""
    mean = torch.einsum("nu,nuv->v", used.to(log_probs), log_probs.exp()) / used.sum().clamp(min=1)
    # keep the log of a token with probability 0 finite
    return (mean + torch.finfo(mean.dtype).tiny).log()


def _scaled_exps(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``exp(logits - largest)``, (R, V), and each row's largest logit, (R, 1); 0 and NaN for invalid rows."""
    logits = logits.double()
    top = logits.amax(-1, keepdim=True)
    is_bad = ~top.isfinite()
    return (logits - top).exp_().masked_fill_(is_bad, 0), top.masked_fill(is_bad, torch.nan)


def _linear_normalizer(encoder: Tensor, decoder: Tensor) -> Tensor:
    """Return ``logsumexp(encoder[:, :, None] + decoder[:, None], -1)``: (N, T, V), (N, R, V) to (N, T, R), float64."""
    return _LinearNormalizer.apply(encoder, decoder)


class _LinearNormalizer(torch.autograd.Function):
    # one utterance at a time, so that the exponentials of the whole batch are never held
    @staticmethod
    def forward(ctx, encoder, decoder):
        rows = []
        for frames, labels in zip(encoder, decoder, strict=True):
            (left, left_top), (right, right_top) = _scaled_exps(frames), _scaled_exps(labels)
            rows.append((left @ right.T).clamp_(min=_SMALLEST_SUM).log_() + left_top + right_top.T)
        normalizer = torch.stack(rows)
        ctx.save_for_backward(encoder, decoder, normalizer)
        return normalizer

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        encoder, decoder, normalizer = ctx.saved_tensors
        grad_encoder, grad_decoder = torch.empty_like(encoder), torch.empty_like(decoder)
        for n in range(len(encoder)):
            (left, left_top), (right, right_top) = _scaled_exps(encoder[n]), _scaled_exps(decoder[n])
            total = (normalizer[n] - left_top - right_top.T).exp_()
            # the condition is false for NaN, too
            share = torch.where(total > 1.001 * _SMALLEST_SUM, grad[n] / total, 0)
            grad_encoder[n] = left * (share @ right)
            grad_decoder[n] = right * (share.T @ left)
        return grad_encoder, grad_decoder
