"""The published tokenizer in transformers' form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerFast

from dsv2.tokenizer import Tokenizer, chat_format


class DeepseekTokenizer(PreTrainedTokenizerFast):
    """The published tokenizer as it is stored, with chat formats in code.

    Unlike the Llama class that published files name, it keeps the stored pre-tokenizer and
    decoder, without which current releases of transformers lose spaces.
    """

    @classmethod
    def from_pretrained(cls, name: Any, *inputs: Any, **kwargs: Any) -> DeepseekTokenizer:
        """Load ``tokenizer.json``; see transformers."""
        for option in ("trust_remote_code", "use_fast"):
            kwargs.pop(option, None)
        made: DeepseekTokenizer = super().from_pretrained(name, *inputs, **kwargs)
        return made

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The tokens of a conversation, with no text of a message read as a control token.

        Args:
            conversation: messages, or a list of conversations.
            tools: functions in OpenAI's form.
            add_generation_prompt: end where the assistant is to speak.
            tokenize: False for the text, control tokens included.
            return_tensors: ``pt`` for a tensor ``[1, T]`` (left-padded ``[B, T]`` for several).
            return_dict: also the attention mask, as a BatchEncoding.

        Raises:
            ChatError: a message is malformed.
            TypeError: an option that is not followed.
        """
        unknown = {name for name, value in kwargs.items() if value not in (None, False)}
        if unknown:
            raise TypeError(f"apply_chat_template does not follow {', '.join(sorted(unknown))}")
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        talks = list(conversation) if several else [conversation]
        ours = Tokenizer(json.loads(self.backend_tokenizer.to_str()), self._settings())
        formatted = chat_format(ours.chat_format_name, ours)
        rows = [
            formatted.render(
                talk, tools=tools or (), add_generation_prompt=add_generation_prompt
            ).ids
            for talk in talks
        ]
        if not tokenize:
            texts = [ours.decode(row, skip_special_tokens=False) for row in rows]
            return texts if several else texts[0]
        if return_tensors not in (None, "pt"):
            raise TypeError(f"return_tensors is {return_tensors!r}, allowed are None and 'pt'")
        if return_tensors is None and not return_dict:
            return rows if several else rows[0]
        width = max(map(len, rows))
        pad = self.pad_token_id if self.pad_token_id is not None else self.eos_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        if not return_dict:
            return ids
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def _settings(self) -> dict[str, Any]:
        return {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "chat_template": self.chat_template,
        }
