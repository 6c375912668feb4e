"""xLSTM as a language model: embedding, the encoder of the forecasting models, logits; generation step by step."""

from __future__ import annotations

import math
import re
from collections import abc
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..checkpoint import load_checkpoint, save_checkpoint
from ..encoder import STRUCTURES, Encoder, EncoderConfig
from ..layers import initial

KIND = "xlstm-language-model"
TYPES = {"sLSTM": "s", "mLSTM": "m"}
PREFILL = 512  # prompt tokens that are read at once


def block_letters(lstm_type: str, num_blocks: int, num_layers: int) -> tuple[str, int]:
    """The encoder's letters and recurrent layers per letter for a type or a pattern such as "msmm".

    A pattern gives one letter to each block, repeated as often as needed; where it does not divide the number of blocks
    but that of all recurrent layers, one letter to each of those. Raises ValueError for other patterns.
    """
    letters = TYPES.get(lstm_type, lstm_type) if isinstance(lstm_type, str) else ""
    if re.fullmatch(r"xLSTM\[\d+:\d+\]", letters):
        letters = EncoderConfig(blocks=letters).pattern
    if not letters or set(letters) - set("ms"):
        raise ValueError(
            f'lstm_type={lstm_type!r} is unknown; choose "sLSTM", "mLSTM", a pattern of the letters m and s such as '
            '"msmm", or a ratio such as "xLSTM[7:1]"'
        )
    if num_blocks % len(letters) == 0:
        return letters * (num_blocks // len(letters)), num_layers
    total = num_blocks * num_layers
    if total % len(letters) == 0:
        return letters * (total // len(letters)), 1
    raise ValueError(
        f"lstm_type={lstm_type!r} names {len(letters)} layers, which divides neither num_blocks={num_blocks} nor all "
        f"{total} recurrent layers; change one of them"
    )


def unset_linear(d_in: int, d_out: int) -> nn.Linear:
    """A linear map without bias whose weight is yet to be drawn."""
    return initial.unset(nn.Linear(d_in, d_out, bias=False, device="meta"))


class xLSTM(nn.Module):
    """A language model on the xLSTM encoder: token ids (B, T), state -> logits (B, T, vocab_size), state.

    num_blocks residual blocks of num_layers recurrent layers each. lstm_type: "sLSTM", "mLSTM", a pattern of the
    letters m and s such as "msmm" (see `block_letters`), or "xLSTM[7:1]". block: "pre" (up-projection, recurrence,
    down-projection) or "post" (recurrence, then up- and down-projection); None: as in the paper, "pre" for mLSTM and
    "post" for sLSTM. bidirectional: every layer adds a reverse pass, so that it cannot generate. tie_embeddings: the
    logits are products with the embeddings themselves. generator: what the initial values are drawn from; None:
    torch's global generator.

    >>> model = xLSTM(vocab_size=100, embedding_size=32, hidden_size=64, num_layers=1, num_blocks=2, lstm_type="ms")
    >>> ids = torch.randint(0, 100, (2, 10))
    >>> logits, state = model(ids)
    >>> logits, state = model(ids, state)  # goes on where the first call ended
    >>> longer = model.generate(ids, max_new_tokens=5, seed=0)  # (2, 15)
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        num_blocks: int = 2,
        dropout: float = 0.0,
        bidirectional: bool = False,
        lstm_type: str = "mLSTM",
        *,
        block: str | None = None,
        num_heads: int = 4,
        conv_kernel: int = 4,
        tie_embeddings: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "embedding_size": embedding_size, "hidden_size": hidden_size}
        for name, value in (sizes | {"num_layers": num_layers, "num_blocks": num_blocks}).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
        if block not in (None, *STRUCTURES):
            raise ValueError(
                f"block={block!r} is unknown; choose from {', '.join(STRUCTURES)}, or None for the paper's"
            )
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide hidden_size={hidden_size}")
        letters, layers = block_letters(lstm_type, num_blocks, num_layers)
        self.arguments: dict[str, Any] = sizes | {
            "num_layers": num_layers,
            "num_blocks": num_blocks,
            "dropout": dropout,
            "bidirectional": bidirectional,
            "lstm_type": lstm_type,
            "block": block,
            "num_heads": num_heads,
            "conv_kernel": conv_kernel,
            "tie_embeddings": tie_embeddings,
        }
        self.vocab_size, self.bidirectional = vocab_size, bidirectional
        self.embedding = nn.Parameter(torch.empty(vocab_size, embedding_size))
        same = embedding_size == hidden_size
        self.inward = None if same else unset_linear(embedding_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Encoder(
            EncoderConfig(
                d_model=hidden_size,
                num_heads=num_heads,
                blocks=letters,
                num_layers=layers,
                structure=block,
                dropout=dropout,
                conv_kernel=conv_kernel,
                bidirectional=bidirectional,
            ),
            generator,
        )
        self.outward = None if same or not tie_embeddings else unset_linear(hidden_size, embedding_size)
        self.head = None if tie_embeddings else unset_linear(hidden_size, vocab_size)
        own = [self.embedding, *(m.weight for m in (self.inward, self.outward, self.head) if m is not None)]
        for weight in own:
            initial.small(weight, weight.shape[1], generator)

    def forward(self, input_ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits of the next token after every position.

        input_ids: (B, T) integers. state: as returned by an earlier call; None: the start of a text. Returns logits
        (B, T, vocab_size) and the state. Raises ValueError for ids outside 0 to vocab_size - 1.
        """
        self._check(input_ids)
        features, state = self._features(input_ids, state)
        return self._logits(features), state

    def step(self, input_ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One token per row: ids (B,), state -> logits (B, vocab_size), state."""
        self._check_causal()
        logits, state = self(input_ids[:, None], state)
        return logits[:, 0], state

    def _features(self, input_ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        x = F.embedding(input_ids, self.embedding)
        x = self.dropout(x if self.inward is None else self.inward(x))
        return self.encoder(x, state)

    def _logits(self, features: Tensor) -> Tensor:
        if self.head is not None:
            return self.head(features)
        return F.linear(features if self.outward is None else self.outward(features), self.embedding)

    def _check(self, input_ids: Tensor) -> None:
        if not isinstance(input_ids, Tensor):
            raise TypeError(f"input_ids must be a tensor of shape (batch, steps), found {type(input_ids).__name__}")
        if input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                "input_ids must be integers of shape (batch, steps), found "
                f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
            )
        if not input_ids.numel():
            raise ValueError(f"input_ids of shape {tuple(input_ids.shape)} hold no token; give at least one")
        if torch.compiler.is_compiling():
            return
        low, high = (int(x) for x in torch.aminmax(input_ids))
        if low < 0 or high >= self.vocab_size:
            found = low if low < 0 else high
            raise ValueError(
                f"token id {found} is out of range: the model's vocabulary has ids 0 to {self.vocab_size - 1}; "
                "use the tokenizer that the model was built for"
            )

    def _check_causal(self) -> None:
        if self.bidirectional:
            raise ValueError(
                "a bidirectional model cannot generate: its reverse pass starts at the end of the text, which is yet "
                "to be written; build it with bidirectional=False"
            )

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Continue each row: (B, T) -> (B, T + new), new at most max_new_tokens.

        Recurrent: the work and memory of a token do not depend on how many came before it. temperature 0 takes the most
        likely token; top_k and top_p restrict the draw to the k most likely tokens, or to the fewest that hold
        probability p. A row that has produced eos_token_id is filled up with it, and all rows done end the call. seed:
        the same seed gives the same tokens; None draws one from torch's global generator.
        """
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens!r}: expected a whole number of at least 1")
        stream = self.stream(input_ids, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        tokens = []
        try:
            for token in stream:
                if eos_token_id is not None:
                    token = token.masked_fill(done, eos_token_id)
                    done |= token == eos_token_id
                tokens.append(token)
                if len(tokens) == max_new_tokens or (eos_token_id is not None and bool(done.all())):
                    break
        finally:
            stream.close()
        return torch.cat([input_ids, torch.stack(tokens, 1)], 1)

    def stream(
        self,
        input_ids: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> abc.Generator[Tensor, None, None]:
        """Yield the next token of each row (B,), without end and in constant memory. Arguments as in `generate`."""
        self._check_causal()
        self._check(input_ids)
        if not temperature >= 0 or math.isinf(temperature):
            raise ValueError(f"temperature={temperature}: expected 0 (the most likely token) or more")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: expected at least 1")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p}: expected a probability in (0, 1]")
        generator = Generator(input_ids.device)
        generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        return self._stream(input_ids, temperature, top_k, top_p, generator)

    @torch.no_grad()
    def _stream(
        self, input_ids: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: Generator
    ) -> abc.Generator[Tensor, None, None]:
        state = None
        for part in input_ids.split(PREFILL, 1):
            logits, state = self._infer(part, state)
        while True:
            token = draw(logits, temperature, top_k, top_p, generator)
            yield token
            logits, state = self._infer(token[:, None], state)

    def _infer(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, vocab) after the last token, and the state, without dropout; the mode is left as it was."""
        training = self.training
        if training:
            self.eval()
        try:
            features, state = self._features(ids, state)
            return self._logits(features[:, -1]), state
        finally:
            if training:
                self.train()

    def check_tokenizer(self, tokenizer: Any) -> None:
        """ValueError where the model's vocabulary and the tokenizer's differ in size."""
        if len(tokenizer) != self.vocab_size:
            raise ValueError(
                f"the model's vocab_size is {self.vocab_size} and the tokenizer has {len(tokenizer)} tokens; build the "
                "model with vocab_size=len(tokenizer), or load the tokenizer that it was trained with"
            )

    def save(self, path: str | Path) -> None:
        """Write weights and arguments to one safetensors file."""
        save_checkpoint(path, dict(self.state_dict()), {"kind": KIND, "arguments": self.arguments})

    @classmethod
    def load(cls, path: str | Path) -> xLSTM:
        """A model as saved, dtype included, on the CPU, in evaluation mode. Raises as `checkpoint.load_checkpoint`."""
        tensors, config = load_checkpoint(path)
        if config.get("kind") != KIND:
            raise ValueError(f"{path} holds no language model; XLSTMForecaster.load reads forecasters")
        kind = next(value.dtype for value in tensors.values() if value.is_floating_point())
        model = cls(**config["arguments"], generator=Generator()).to(kind)
        model.load_state_dict(tensors)
        return model.eval()


def draw(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: Generator) -> Tensor:
    """One token per row from logits (B, vocab): (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # small temperatures leave 0 for the most likely
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ranked, order = logits.softmax(-1).sort(descending=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p  # the token that crosses p stays in
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
