"""Modified beam search one utterance and one hypothesis at a time, on Python lists: what the fast one must find."""

from __future__ import annotations

import torch


@torch.inference_mode()
def slow_modified_beam_search(model, encoder_out, lens, beam_size):
    """Best tokens, frames and log-probability of each utterance."""
    results = []
    for n, num_frames in enumerate(lens.tolist()):
        beam = {(): (0.0, ())}  # tokens -> log-probability, frames
        for t in range(num_frames):
            candidates = []
            for tokens, (log_prob, frames) in beam.items():
                context = ((model.blank_id,) * model.context_size + tokens)[-model.context_size :]
                decoder_out = model.predict(torch.tensor([context]))
                own = model.join(encoder_out[n, t : t + 1], decoder_out).log_softmax(-1)[0].tolist()
                for symbol, more in enumerate(own):
                    is_blank = symbol == model.blank_id
                    new = (tokens, frames) if is_blank else ((*tokens, symbol), (*frames, t))
                    candidates.append((log_prob + more, *new))
            candidates.sort(key=lambda candidate: -candidate[0])
            beam = {}
            for log_prob, tokens, frames in candidates[:beam_size]:
                if tokens in beam:
                    log_prob = float(torch.logaddexp(torch.tensor(beam[tokens][0]), torch.tensor(log_prob)))
                    frames = beam[tokens][1]
                beam[tokens] = (log_prob, frames)
        ranked = sorted(beam.items(), key=lambda item: -item[1][0] / max(1, len(item[0]) + model.context_size))
        results.append([(tokens, frames, log_prob) for tokens, (log_prob, frames) in ranked])
    return results
