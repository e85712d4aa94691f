"""Examples as token ids: one after another, or as a conversation by a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.data.formats import Example
from compress.data.windows import tokenised
from compress.errors import RequestError


class Writer:
    """Turns examples that make one prompt into token ids.

    Args:
        tokenizer: of the model.
        separator: text between two examples.
        answered: whether the examples have answers.
        chat: use the tokenizer's chat template: a prompt is what the user says, an answer what the
            assistant does.
    """

    def __init__(self, tokenizer: Any, separator: str, answered: bool, chat: bool) -> None:
        self._tokenizer, self._answered, self._chat = tokenizer, answered, chat
        self._separator = tokenised(tokenizer, [separator])[0] if separator else []
        self._known: dict[int, list[int]] = {}

    def __call__(self, examples: Sequence[Example]) -> list[int]:
        """Return the ids of examples in one prompt, without special tokens around them."""
        if self._chat:
            return tokenised(self._tokenizer, [self.conversation(examples)])[0]
        ids: list[int] = []
        for number, example in enumerate(examples):
            ids += (self._separator if number else []) + self._one(example)
        return ids

    def _one(self, example: Example) -> list[int]:
        if example.row not in self._known:
            text = example.prompt + example.answer
            self._known[example.row] = tokenised(self._tokenizer, [text])[0]
        return self._known[example.row]

    def conversation(self, examples: Sequence[Example]) -> str:
        """Return examples as a conversation, without the beginning-of-text token.

        Raises:
            RequestError: the template can't take them.
        """
        messages = []
        for example in examples:
            messages.append({"role": "user", "content": example.prompt.strip()})
            if self._answered:
                messages.append({"role": "assistant", "content": example.answer.strip()})
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not self._answered
            )
        except Exception as error:  # a template is a program and may raise whatever it likes
            line = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            raise RequestError(
                f"the tokenizer's chat template can't write {len(examples)} examples: {line}",
                "use `--no-chat-template` for plain text",
            ) from error
        begin = getattr(self._tokenizer, "bos_token", None)
        return text.removeprefix(begin) if begin else text


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))
