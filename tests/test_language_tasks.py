"""Tasks that tell the memories of the language models apart, beyond the lengths that they were trained on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from xlstm_forecast.language import parameter_groups, xLSTM


def learn(model, make, steps, lr, lengths, seed=0, growth=0.0, decay=0.0):
    """Train on batches make(64, length, generator) of random lengths with a cosine rate.

    growth: the share of the steps in which the longest length grows, from the first; the others are from half of it.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, decay), lr=lr)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        longest = lengths[0] + int((lengths[1] - lengths[0]) * (min(1.0, step / (growth * steps)) if growth else 1.0))
        shortest = longest // 2 if growth else lengths[0]
        x, y = make(64, int(torch.randint(shortest, longest + 1, (), generator=generator)), generator)
        loss = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()


@torch.no_grad()
def right(model, x, y) -> torch.Tensor:
    return (model(x)[0].argmax(-1) == y)[y >= 0].float().mean()


def test_an_slstm_tracks_parity_four_times_beyond_the_trained_length():
    def parity(rows, steps, generator):
        bits = torch.randint(0, 2, (rows, steps), generator=generator)
        return bits, bits.cumsum(1) % 2

    model = xLSTM(2, 32, 32, 1, 1, lstm_type="sLSTM", conv_kernel=0, generator=torch.Generator().manual_seed(0))
    learn(model, parity, steps=300, lr=1e-2, lengths=(20, 40))
    x, y = parity(300, 160, torch.Generator().manual_seed(99))
    assert right(model, x, y) > 0.99
    assert (model(x)[0][:, -1].argmax(-1) == y[:, -1]).float().mean() > 0.99


def test_a_mixed_model_copies_words_twice_as_long_as_it_was_trained_on():
    def copy(rows, steps, generator):
        word = torch.randint(0, 128, (rows, steps), generator=generator)
        x = torch.cat([word, torch.full((rows, 1), 128), word[:, :-1]], 1)
        return x, torch.cat([torch.full_like(word, -100), word], 1)

    start = torch.Generator().manual_seed(0)
    model = xLSTM(129, 128, 128, 1, 2, lstm_type="sm", num_heads=1, conv_kernel=8, generator=start)
    learn(model, copy, steps=240, lr=6e-3, lengths=(4, 40), growth=0.4, decay=1.0)
    for length, share in ((20, 0.99), (40, 0.99), (80, 0.97)):  # by chance: 0.008
        assert right(model, *copy(200, length, torch.Generator().manual_seed(99))) > share
