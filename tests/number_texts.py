"""A tokenizer of numbers, and texts of them, so that every token can be told apart."""

from __future__ import annotations


class Words:
    """A tokenizer of numbers: "12 7" is [12, 7]; so tokens can be told apart."""

    bos_token_id = None
    eos_token_id = 1

    def __init__(self, bos=None, eos=1):
        self.bos_token_id = bos
        self.eos_token_id = eos

    def __call__(self, text, add_special_tokens=True, verbose=True):
        one = isinstance(text, str)
        begin = [self.bos_token_id] if self.bos_token_id is not None and add_special_tokens else []
        ids = [
            begin + [int(w) for w in t.split() if w.isdigit()] for t in ([text] if one else text)
        ]
        return {"input_ids": ids[0] if one else ids}


def numbers(start, count):
    return " ".join(str(n) for n in range(start, start + count))
