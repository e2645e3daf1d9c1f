"""The context of a slide as one dense masked transformer in float64, written from its documentation alone: nothing is packed, streamed or windowed."""

import math

import numpy as np


def dense_context(tokens, row, col, state, *, window, depth, heads, shift, position, stride_um, width=None):
    """(n, d) float64 of (n, d) tokens at absolute places of the token grid.

    Every token has a logit for every other one; those of another window of the layer, by division of the absolute place alone, are -inf.
    """
    state = {name: np.asarray(value, np.float64) for name, value in state.items()}
    x = np.asarray(tokens, np.float64)
    if width is not None:
        x = affine(state, "ends.enter", (x - state["ends.mean"]) / state["ends.spread"])
    dim = x.shape[1]
    if position == "sincos":
        x = x + np.concatenate([sines(place, dim // 2, stride_um) for place in (row, col)], axis=1)
    if position == "learned":
        x = x + state["table.table"][row % window * window + col % window]
    for layer in range(depth):
        begin = window // 2 if shift and layer % 2 else 0
        cell = [(place + begin) % window for place in (row, col)]
        square = [(place + begin) // window for place in (row, col)]
        together = (square[0][:, None] == square[0]) & (square[1][:, None] == square[1])
        name = f"blocks.{layer}"
        normed = norm(x, state, f"{name}.norm1")
        q, k, v = (part.reshape(len(x), heads, -1) for part in np.split(affine(state, f"{name}.attn.qkv", normed), 3, axis=1))
        if position == "rope":
            q, k = turned(q, cell), turned(k, cell)
        mixed = np.empty_like(v)
        for head in range(heads):
            logits = q[:, head] @ k[:, head].T / math.sqrt(q.shape[2])
            logits = logits + bias(state, f"{name}.attn.bias", position, window, cell, head)
            logits = np.where(together, logits, -np.inf)
            share = np.exp(logits - logits.max(axis=1, keepdims=True))
            mixed[:, head] = share / share.sum(axis=1, keepdims=True) @ v[:, head]
        x = x + affine(state, f"{name}.attn.proj", mixed.reshape(len(x), -1))
        inner = affine(state, f"{name}.mlp.fc1", norm(x, state, f"{name}.norm2"))
        x = x + affine(state, f"{name}.mlp.fc2", inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))))
    x = norm(x, state, "norm")
    return x if width is None else affine(state, "ends.exit", x)


def affine(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(x, state, name):
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]


def sines(place, dim, stride_um):
    """The middle of a cell in µm over 8 µm, or in cells; frequencies fall from 1 to 1/10,000."""
    where = (place + 0.5) * (1 if stride_um is None else stride_um / 8)
    angle = where[:, None] * 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def turned(x, cell):
    """Pairs of channels as complex numbers: the first half of them turns with the row in the window, the second with the column."""
    pairs = x.shape[2] // 4
    frequency = 100.0 ** (-np.arange(pairs) / pairs)
    angle = np.concatenate([cell[0][:, None] * frequency, cell[1][:, None] * frequency], axis=1)
    found = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    return np.stack([found.real, found.imag], axis=-1).reshape(x.shape)


def bias(state, name, position, window, cell, head):
    """What an offset in a window, query less key, adds to a logit."""
    row, col = (place[:, None] - place[None, :] for place in cell)
    if position == "bias":
        return state[f"{name}.table"][(row + window - 1) * (2 * window - 1) + col + window - 1, head]
    if position != "log_bias":
        return 0.0
    spaced = [np.sign(offset) * np.log2(1 + 8 * np.abs(offset) / max(1, window - 1)) / 3 for offset in (row, col)]
    inner = np.maximum(np.stack(spaced, axis=-1) @ state[f"{name}.fc1.weight"].T + state[f"{name}.fc1.bias"], 0)
    return 16 / (1 + np.exp(-(inner @ state[f"{name}.fc2.weight"][head])))
