"""The picture of a dev utterance's lattice."""

from __future__ import annotations

import torch
from model_sizes import conformer_model

from stateless_transducer.data.batches import Batch
from stateless_transducer.model.transducer import build_model
from stateless_transducer.training.validation import occupations

SIZES = conformer_model(
    vocab_size=9, num_layers=1, attention_dim=16, num_heads=2, feedforward_dim=16, joiner_dim=16, dropout=0
)


def _by_hand(log_probs, tokens):
    """Occupation of each cell of the standard lattice, from sums of probabilities over whole paths."""
    T, width, _ = log_probs.shape
    blank, symbol = log_probs[..., 0].exp(), log_probs[:, :-1].gather(2, tokens.expand(T, -1)[..., None])[..., 0].exp()
    ahead, behind = (torch.zeros(T + 1, width + 1, dtype=torch.float64) for _ in range(2))
    for t in range(T):
        for u in range(width):
            from_left = ahead[t - 1, u] * blank[t - 1, u] if t else 0
            from_below = ahead[t, u - 1] * symbol[t, u - 1] if u else 0
            ahead[t, u] = from_left + from_below if t or u else 1
    for t in reversed(range(T)):
        for u in reversed(range(width)):
            says = symbol[t, u] * behind[t, u + 1] if u + 1 < width else 0
            waits = blank[t, u] * (behind[t + 1, u] if t + 1 < T else float(u + 1 == width))
            behind[t, u] = says + waits
    return (ahead * behind / behind[0, 0])[:T, :width].T


@torch.no_grad()
def test_the_picture_shows_how_likely_a_path_goes_through_each_cell():
    torch.manual_seed(3)
    model = build_model(SIZES).eval()
    tokens = torch.tensor([[3, 1, 4], [5, 1, 1]])
    batch = Batch(
        torch.randn(2, 50, 80), torch.tensor([44, 50]), tokens, torch.tensor([3, 1]), ("a", "b"), ("", ""), 0.01
    )
    picture, share = occupations(model, batch, None)
    encoder_out, lens = model.encode(batch.features[:1, :44], batch.feature_lens[:1])
    decoder_out = model.decoder.all_prefixes(tokens[:1])
    logits = model.join(encoder_out[0, : int(lens), None], decoder_out[0, None])
    wanted = _by_hand(logits.double().log_softmax(-1), tokens[0])
    torch.testing.assert_close(torch.from_numpy(picture).double(), wanted, rtol=1e-4, atol=1e-6)
    assert share == (wanted > 1e-6).double().mean()
    assert picture.shape == (4, int(lens))
