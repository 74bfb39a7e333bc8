"""Training a byte-level BPE with the published tokenizer's cuts and control tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from dsv2.tokenizer import special
from dsv2.tokenizer.bpe import FILES, Tokenizer
from dsv2.tokenizer.definition import PATTERNS, TokenizerError

BYTES = 256

TEMPLATES = {
    "v2": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
        "{{ 'Assistant: ' + message['content'] + eos_token }}"
        "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "v2.5": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '<｜User｜>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
        "{{ '<｜Assistant｜>' + message['content'] + eos_token }}"
        "{% elif message['role'] == 'system' %}{{ message['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
    ),
}
"""The templates stored for other programs; ours renders in code and knows tools as well."""


def train_bpe(
    texts: Iterable[str], vocab_size: int, folder: Path, *, chat: str = "v2.5",
    model_max_length: int = 16384, progress: bool = False,
) -> Tokenizer:  # fmt: skip
    """Train on ``texts`` and write ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        texts: training text.
        vocab_size: ids in all: 256 bytes, merges, and the control tokens at the end.
        folder: where the files go.
        chat: the chat format that the stored template is of.
        model_max_length: told to other programs.
        progress: show a progress bar.

    Raises:
        TokenizerError: the vocabulary is too small, the texts too few, or the format unknown.
    """
    learned = vocab_size - len(special.ALL)
    if learned <= BYTES:
        raise TokenizerError(
            f"vocab_size {vocab_size} must be above {BYTES + len(special.ALL)}: 256 bytes and "
            f"{len(special.ALL)} control tokens"
        )
    if chat not in TEMPLATES:
        raise TokenizerError(f"chat {chat!r} is unknown, allowed are {', '.join(TEMPLATES)}")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=learned,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
        special_tokens=[],
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != learned:
        raise TokenizerError(
            f"the texts yield {backend.get_vocab_size()} tokens, {learned} were asked for: "
            "give more text or a smaller vocab_size"
        )
    backend.add_tokens([AddedToken(name, normalized=False, special=True) for name in special.ALL])
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{special.BOS} $A",
                pair=f"{special.BOS} $A {special.BOS}:1 $B:1",
                special_tokens=[(special.BOS, backend.token_to_id(special.BOS))],
            ),
        ]
    )
    settings: dict[str, Any] = {
        # Not the Llama class: newer transformers replace its pre-tokenizer and lose spaces.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": special.BOS,
        "eos_token": special.EOS,
        "pad_token": special.EOS,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "chat_template": TEMPLATES[chat],
    }
    tokenizer = Tokenizer(json.loads(backend.to_str()), settings)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    assert set(FILES) == set(tokenizer.files())
    return tokenizer
