"""Tiny streaming transducers with the inputs, outputs and metadata that sherpa-onnx asks for, and random weights.

They are strictly causal behind a look-ahead of 5 frames, so that the whole sound at once gives what chunks give if, and
only if, every state is carried as it should be. Letters: N streams, T feature frames, n encoder frames, d width, L left
context.
"""

from __future__ import annotations

import copy

import onnx
import torch
from torch import Tensor, nn

CHUNK_LEN, LOOK_AHEAD, JOINER_DIM, VOCAB_SIZE = 8, 5, 12, 20
SYMBOLS = ["<blk>", "x", "<unk>", *("\u2581" * (i % 3 == 0) + chr(97 + i) for i in range(VOCAB_SIZE - 3))]
LAYERS, LEFT, KERNELS, DIM = (1, 2), (4, 6), (5, 7), 8  # two stacks


class Layer(nn.Module):
    """Windowed causal attention and causal convolution."""

    def __init__(self, left: int, kernel: int):
        super().__init__()
        self.left, self.kernel = left, kernel
        self.query, self.key = nn.Linear(DIM, 8), nn.Linear(DIM, 8)
        self.conv = nn.Conv1d(DIM, DIM, kernel, groups=DIM)

    def weights(self, x: Tensor, past_keys: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """(N, n, d), (N, L, 8) and (N,) -> attention of each frame to the L before it (N, n, L + n), and all keys."""
        keys = torch.cat([past_keys, self.key(x)], 1)
        place, t = torch.arange(keys.shape[1]), torch.arange(x.shape[1])
        ahead = place[None] - t[:, None]
        heard = place[None] >= self.left - filled[:, None].clamp(max=self.left)
        mask = ((ahead >= 0) & (ahead <= self.left))[None] & heard[:, None]
        scores = self.query(x) @ keys.transpose(1, 2) / 20
        return scores.masked_fill(~mask, -1e4).softmax(-1), keys

    def convolve(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """(N, n, d) and (N, d, kernel - 1) -> (N, n, d), and the next past."""
        wave = torch.cat([past, x.transpose(1, 2)], 2)
        return self.conv(wave).transpose(1, 2), wave[:, :, wave.shape[2] - self.kernel + 1 :]


def _last(x: Tensor, count: int, axis: int = 1) -> Tensor:
    return x.narrow(axis, x.shape[axis] - count, count)


class Encoder(nn.Module):
    """Subsampling, the kind's own layers, projection."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv1d(80, DIM, 4 + LOOK_AHEAD, stride=4)
        self.output = nn.Linear(DIM, JOINER_DIM)
        self.values = nn.ModuleList(nn.Linear(DIM, 6) for _ in range(3 * sum(LAYERS)))
        self.mixed = nn.ModuleList(nn.Linear(6, DIM) for _ in range(3 * sum(LAYERS)))

    def subsample(self, x: Tensor) -> Tensor:
        return torch.tanh(self.embed((x.transpose(1, 2) + 6) / 2).transpose(1, 2))

    def attend(self, i: int, x: Tensor, weights: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Value i, (N, n, d) and (N, L, 6) -> (N, n, d), and all values."""
        values = torch.cat([past, torch.tanh(self.values[i](x))], 1)
        return x + self.mixed[i](weights @ values), values


class Zipformer2(Encoder):
    kind = "zipformer2"
    metadata = {
        "encoder_dims": "8,8",
        "query_head_dims": "4,4",
        "value_head_dims": "3,3",
        "num_heads": "2,2",
        "num_encoder_layers": "1,2",
        "cnn_module_kernels": "8,12",
        "left_context_len": "4,6",
    }
    axes = [1, 1, 1, 1, 0, 0] * 3 + [0, 0]

    def __init__(self):
        super().__init__()
        sizes = [pair for count, *pair in zip(LAYERS, LEFT, KERNELS, strict=True) for _ in range(count)]
        self.layers = nn.ModuleList(Layer(*pair) for pair in sizes)
        self.convs = nn.ModuleList(Layer(*pair) for pair in sizes)
        self.spread, self.kernel = nn.Linear(DIM, 19), nn.Parameter(torch.randn(128, 4))
        self.gather = nn.Linear(128 * 19, DIM)

    def names(self) -> list[str]:
        kinds = ("key", "nonlin_attn", "val1", "val2", "conv1", "conv2")
        return [*(f"cached_{kind}_{i}" for i in range(3) for kind in kinds), "embed_states", "processed_lens"]

    def initial(self, N: int = 1) -> list[Tensor]:
        states = []
        for layer in self.layers:
            L, k = layer.left, layer.kernel - 1
            shapes = ((L, N, 8), (1, N, L, 6), (L, N, 6), (L, N, 6), (N, DIM, k), (N, DIM, k))
            states += [torch.zeros(shape) for shape in shapes]
        return [*states, torch.zeros(N, 128, 3, 19), torch.zeros(N, dtype=torch.int64)]

    def forward(self, x: Tensor, *states: Tensor):
        x, new, processed = self.subsample(x), [], states[-1]
        # (N, 128, 3 + n, 19): a filter of four frames in each channel
        wave = torch.cat([states[-2], self.spread(x)[:, None] * torch.ones(128, 1, 1)], 2)
        n = x.shape[1]
        parts = [self.kernel[:, i, None, None] * wave[:, :, i : i + n] for i in range(4)]
        x = x + torch.tanh(self.gather(sum(parts).transpose(1, 2).flatten(2)) / 8)
        for i, (layer, second) in enumerate(zip(self.layers, self.convs, strict=True)):
            key, nonlin, val1, val2, conv1, conv2 = states[6 * i : 6 * i + 6]
            L = layer.left
            weights, keys = layer.weights(x, key.transpose(0, 1), processed)
            x, nonlins = self.attend(3 * i, x, weights, nonlin[0])
            x, values1 = self.attend(3 * i + 1, x, weights, val1.transpose(0, 1))
            y, conv1 = layer.convolve(x, conv1)
            x, values2 = self.attend(3 * i + 2, x + y, weights, val2.transpose(0, 1))
            y, conv2 = second.convolve(x, conv2)
            x = torch.tanh(x + y)
            new += [_last(keys, L).transpose(0, 1), _last(nonlins, L)[None]]
            new += [_last(values, L).transpose(0, 1) for values in (values1, values2)] + [conv1, conv2]
        return self.output(x), *new, _last(wave, 3, 2), processed + n


class Zipformer(Encoder):
    """The first zipformer: states of a stack together, a running mean, lens that count encoder frames."""

    kind = "zipformer"
    metadata = {
        "encoder_dims": "8,8",
        "attention_dims": "8,8",
        "num_encoder_layers": "1,2",
        "cnn_module_kernels": "5,7",
        "left_context_len": "4,6",
    }
    axes = [1] * 4 + [2] * 6 + [1] * 4

    def __init__(self):
        super().__init__()
        self.values = nn.ModuleList(nn.Linear(DIM, 4) for _ in range(6))
        self.mixed = nn.ModuleList(nn.Linear(4, DIM) for _ in range(6))
        sizes = list(zip(LAYERS, LEFT, KERNELS, strict=True))
        stack = [(left, kernel) for count, left, kernel in sizes for _ in range(count)]
        self.layers, self.convs = (nn.ModuleList(Layer(*pair) for pair in stack) for _ in range(2))

    def names(self) -> list[str]:
        kinds = ("len", "avg", "key", "val", "val2", "conv1", "conv2")
        return [f"cached_{kind}_{stack}" for kind in kinds for stack in range(2)]

    def initial(self, N: int = 1) -> list[Tensor]:
        states = [torch.zeros(count, N, dtype=torch.int64) for count in LAYERS]
        states += [torch.zeros(count, N, DIM) for count in LAYERS]
        for width in (8, 4, 4):
            states += [torch.zeros(count, left, N, width) for count, left in zip(LAYERS, LEFT, strict=True)]
        for _ in range(2):
            states += [torch.zeros(count, N, DIM, k - 1) for count, k in zip(LAYERS, KERNELS, strict=True)]
        return states

    def forward(self, x: Tensor, *states: Tensor):
        x, i = self.subsample(x), 0
        new: list[list[Tensor]] = [[] for _ in states]
        for stack, count in enumerate(LAYERS):
            for place in range(count):
                layer, second = self.layers[i], self.convs[i]
                lens, mean, key, val1, val2, conv1, conv2 = (state[place] for state in states[stack::2])
                until = lens[:, None] + torch.arange(1, 1 + x.shape[1])
                means = (mean * lens[:, None])[:, None] + x.cumsum(1)
                means = means / until[:, :, None]
                weights, keys = layer.weights(x, key.transpose(0, 1), lens)
                x, values1 = self.attend(2 * i, x + means, weights, val1.transpose(0, 1))
                y, conv1 = layer.convolve(x, conv1)
                x, values2 = self.attend(2 * i + 1, x + y, weights, val2.transpose(0, 1))
                y, conv2 = second.convolve(x, conv2)
                x = torch.tanh(x + y)
                kept = [_last(each, layer.left).transpose(0, 1) for each in (keys, values1, values2)]
                for kind, state in enumerate((until[:, -1], means[:, -1], *kept, conv1, conv2)):
                    new[2 * kind + stack].append(state)
                i += 1
        return self.output(x), *(torch.stack(each) for each in new)


class Conformer(Encoder):
    """Told how many feature frames came before the chunk, it does not count them itself."""

    kind = "conformer"
    metadata = {
        "num_encoder_layers": "2",
        "left_context": "6",
        "encoder_dim": "8",
        "pad_length": str(LOOK_AHEAD),
        "cnn_module_kernel": "5",
    }
    axes = [2, 2, 0]

    def __init__(self):
        super().__init__()
        self.values = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2))
        self.layers = nn.ModuleList(Layer(6, 5) for _ in range(2))

    def names(self) -> list[str]:
        return ["cached_attn", "cached_conv", "processed_lens"]

    def initial(self, N: int = 1) -> list[Tensor]:
        return [torch.zeros(2, 6, N, DIM), torch.zeros(2, 4, N, DIM), torch.zeros(N, dtype=torch.int64)]

    def forward(self, x: Tensor, attn: Tensor, conv: Tensor, processed: Tensor):
        x, attns, convs = self.subsample(x), [], []
        for i, layer in enumerate(self.layers):
            past = attn[i].transpose(0, 1)
            # keys are the cached frames themselves
            keys = torch.cat([past, x], 1)
            weights, _ = layer.weights(x, layer.key(past), processed // 4)
            y, rest = layer.convolve(x, conv[i].permute(1, 2, 0))
            attns.append(_last(keys, 6).transpose(0, 1))
            convs.append(rest.permute(2, 0, 1))
            x = torch.tanh(x + y + self.values[i](weights @ keys))
        return self.output(x), torch.stack(attns), torch.stack(convs)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(VOCAB_SIZE, DIM), nn.Linear(2 * DIM, JOINER_DIM)

    def forward(self, y: Tensor) -> Tensor:
        # nothing, not even a blank, stands before the first token
        return self.output((self.embedding(y.clamp(min=0)) * (y >= 0)[:, :, None]).flatten(1))


class Joiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(JOINER_DIM, VOCAB_SIZE)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.output(torch.tanh(encoder_out + decoder_out))


KINDS = {each.kind: each for each in (Zipformer2, Zipformer, Conformer)}


class Tiny:
    """A folder with a model, and the networks that were written there."""

    def __init__(self, folder, kind="zipformer2", *, one_stream_only=False):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.encoder, self.decoder, self.joiner = KINDS[kind]().eval(), Decoder().eval(), Joiner().eval()
            for each in [*self.encoder.parameters(), *self.decoder.parameters(), *self.joiner.parameters()]:
                # it should not matter little what was heard and what was said
                each.data *= 4 if each.dim() > 1 else 0
            self.joiner.output.bias.data[0] = 1
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        lines = (f"{symbol} {i}\n" for i, symbol in enumerate(SYMBOLS))
        (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")
        names, free = self.encoder.names(), not one_stream_only
        self._write(
            "encoder",
            (torch.zeros(1, CHUNK_LEN + LOOK_AHEAD, 80), *self.encoder.initial()),
            ["x", *names],
            ["encoder_out", *(f"new_{name}" for name in names[: 2 if kind == "conformer" else None])],
            dict(zip(names, self.encoder.axes, strict=True)) if free else {},
            {
                "model_type": kind,
                "T": str(CHUNK_LEN + LOOK_AHEAD),
                "decode_chunk_len": str(CHUNK_LEN),
                **self.encoder.metadata,
            },
        )
        numbers = {"context_size": "2", "vocab_size": str(VOCAB_SIZE)}
        self._write("decoder", (torch.zeros(1, 2, dtype=torch.int64),), ["y"], ["decoder_out"], {}, numbers)
        pair = (torch.zeros(1, JOINER_DIM), torch.zeros(1, JOINER_DIM))
        self._write("joiner", pair, ["encoder_out", "decoder_out"], ["logit"], {}, {"joiner_dim": str(JOINER_DIM)})

    def _write(self, role, arguments, inputs, outputs, axes, metadata):
        path = self.folder / f"{role}.onnx"
        first = axes or role != "encoder"
        dynamic = {name: {axes.get(name.removeprefix("new_"), 0): "N"} for name in (*inputs, *outputs)} if first else {}
        torch.onnx.export(
            getattr(self, role),
            arguments,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=13,
            dynamo=False,
        )
        graph = onnx.load(path)
        onnx.helper.set_model_props(graph, metadata)
        onnx.save(graph, path)

    @torch.inference_mode()
    def whole(self, features: Tensor) -> Tensor:
        """(T, F) -> encoder_out (n, D) of all the frames at once."""
        return self.encoder(features[None], *self.encoder.initial())[0][0]

    @torch.inference_mode()
    def whole_in_float64(self, features: Tensor) -> Tensor:
        """`whole`, nearer to the truth."""
        encoder = copy.deepcopy(self.encoder).double()
        states = (each.double() if each.is_floating_point() else each for each in encoder.initial())
        return encoder(features[None].double(), *states)[0][0]

    @torch.inference_mode()
    def greedy(self, features: Tensor) -> list[tuple[int, int, float]]:
        """(T, F) -> (token, frame, log-probability) of greedy search over the whole, one symbol a frame."""
        context, said = [-1, 0], []
        for t, frame in enumerate(self.whole(features)):
            log_probs = self.joiner(frame[None], self.decoder(torch.tensor([context])))[0].log_softmax(0)
            best = int(log_probs.argmax())
            if best not in (0, 2):
                context = [context[1], best]
                said.append((best, t, float(log_probs[best])))
        return said
