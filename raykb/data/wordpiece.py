"""Texts as tokens: a WordPiece vocabulary, learnt from captions or read from BERT's file.

Schuster, Nakajima, "Japanese and Korean voice search", ICASSP 2012; Devlin et al., "BERT", NAACL
2019, arXiv:1810.04805: lower case without accents, words and punctuation, each cut from the left
into the longest pieces that there are; what continues a word begins with ``##``.

    [CLS] a dog ##gy face [SEP] [PAD] [PAD]        tokens, (L,)
       -1 0   1     1    2    -1    -1    -1        the number of the word that each is of
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from raykb.engine.arguments import at_least, refuse
from raykb.engine.foreign import read_text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NO_WORD = -1
MOST_BYTES = 16 * 2**20  # of a vocabulary; that of 119,547 tokens in 104 languages has one million


class Encoded(NamedTuple):
    """Texts of one length."""

    tokens: np.ndarray  # (N, L) int64, 0 where there is no text
    words: np.ndarray  # (N, L) int64, the number of the word that a token is of, or -1


class WordPiece:
    """A vocabulary, and texts in its tokens; pickled as the text of BERT's file.

    Args:
        vocabulary: its tokens, in the order of their numbers; the first is ``[PAD]``.

    Raises:
        ValueError: a special token is missing, or two are the same.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        missing = [token for token in SPECIAL if token not in self.vocabulary]
        problems = [f"vocabulary: has no {', '.join(missing)}"] if missing else []
        if self.vocabulary[:1] != SPECIAL[:1]:
            problems.append("vocabulary: must begin with [PAD], the token 0")
        if len(set(self.vocabulary)) < len(self.vocabulary):
            problems.append("vocabulary: has tokens more than once")
        refuse(problems)
        numbers = {token: number for number, token in enumerate(self.vocabulary)}
        self.mask, self.first_plain = numbers["[MASK]"], max(numbers[each] for each in SPECIAL) + 1
        self._tokenizer = _plain(Tokenizer(models.WordPiece(numbers, unk_token="[UNK]")))
        ends = ("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"])
        self._tokenizer.post_processor = processors.BertProcessing(*ends)

    def __reduce__(self) -> tuple[type["WordPiece"], tuple[tuple[str, ...]]]:
        return WordPiece, (self.vocabulary,)

    @classmethod
    def learnt(cls, texts: Sequence[str], size: int) -> "WordPiece":
        """Return a vocabulary of at most ``size`` tokens that cuts texts into few pieces.

        All characters are in it, first of all and in order, also where they are more than that:
        the trainer would number them by chance, and decide between equals by their numbers.
        """
        tokenizer = _plain(Tokenizer(models.WordPiece(unk_token="[UNK]")))
        letters = sorted({*"".join(map(tokenizer.normalizer.normalize_str, texts))} - {" "})
        first = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=first, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        numbers = tokenizer.get_vocab()
        return cls(sorted(numbers, key=numbers.__getitem__))

    @classmethod
    def read(cls, path: str) -> "WordPiece":
        """Return the vocabulary of a file with a token a line, as BERT's ``vocab.txt``.

        Raises:
            ValueError: it is no text, larger than any vocabulary, or not one of WordPiece.
        """
        return cls(read_text(Path(path), most_bytes=MOST_BYTES).splitlines())

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """Return texts as ``length`` tokens each; what is longer is cut off."""
        if not at_least(3).holds(length):
            raise ValueError(f"length: {length}, must be at least 3: [CLS], a token and [SEP]")
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length)
        found = self._tokenizer.encode_batch(list(texts))
        words = [
            [NO_WORD if word is None else word for word in encoding.word_ids] for encoding in found
        ]
        return Encoded(
            np.array([encoding.ids for encoding in found], np.int64).reshape(-1, length),
            np.array(words, np.int64).reshape(-1, length),
        )

    def decode(self, tokens: np.ndarray) -> str:
        """Return the text of tokens (L,), without special ones."""
        plain = [token for token in tokens.tolist() if self.vocabulary[token] not in SPECIAL]
        text: str = self._tokenizer.decode(plain)
        return text


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Have a tokenizer normalise and cut words as BERT's does."""
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
