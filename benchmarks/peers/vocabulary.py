"""A byte-level BPE of any size: pocket's, cut short or grown by pairs of its tokens."""

from __future__ import annotations

import copy
import json
from itertools import product
from typing import Any

from dsv2.checkpoint.hub import pocket_folder
from dsv2.tokenizer import Tokenizer, special
from dsv2.tokenizer.bpe import FILES

BYTES = 256


def definition(vocab_size: int) -> dict[str, Any]:
    """The content of a ``tokenizer.json`` of so many ids, the control tokens last.

    Raises:
        ValueError: the ids do not suffice for bytes and control tokens.
    """
    learned = vocab_size - len(special.ALL)
    if learned < BYTES:
        raise ValueError(f"vocab_size {vocab_size}, allowed is {BYTES + len(special.ALL)} or more")
    content = copy.deepcopy(json.loads((pocket_folder() / "tokenizer.json").read_text("utf-8")))
    known = content["model"]["vocab"]
    tokens = sorted(known, key=known.__getitem__)[:learned]
    merges = content["model"]["merges"][: learned - BYTES]
    taken = set(tokens)
    for left, right in product(tuple(tokens), tuple(tokens[:BYTES])):
        if len(tokens) == learned:
            break
        if left + right not in taken:
            taken.add(left + right)
            tokens.append(left + right)
            merges.append([left, right])
    content["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
    content["model"]["merges"] = merges
    for place, entry in enumerate(content["added_tokens"]):
        entry["id"] = learned + place
    for processor in content["post_processor"]["processors"]:
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = [learned + special.ALL.index(token["id"])]
    return content


def tokenizer_files(vocab_size: int) -> dict[str, bytes]:
    """The files of such a tokenizer by name, checked by reading them."""
    settings = json.loads((pocket_folder() / FILES[1]).read_text("utf-8"))
    return Tokenizer(definition(vocab_size), settings).files()
