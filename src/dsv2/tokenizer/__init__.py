"""Text to tokens and back: BPE, chat formats, streaming decode, training."""

from dsv2.tokenizer.bpe import Tokenizer
from dsv2.tokenizer.chat import ChatError, ChatFormat, Message, Rendered, ToolCall, chat_format
from dsv2.tokenizer.definition import TokenizerError
from dsv2.tokenizer.stream import StreamDecoder

__all__ = [
    "ChatError",
    "ChatFormat",
    "Message",
    "Rendered",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "chat_format",
]
