import pickle

import numpy as np
import pytest

from raykb.data.wordpiece import SPECIAL, WordPiece

TEXTS = ["a dog face, animal", "a cat face, animal", "red apple, fruit", "green apple, fruit"]


def test_learnt_from_the_same_texts_it_is_the_same_and_cuts_them_without_loss():
    first, again = (WordPiece.learnt(TEXTS, 80) for _ in range(2))
    assert first.vocabulary == again.vocabulary
    assert len(first) <= 80
    assert first.vocabulary[:5] == SPECIAL
    tokens, words = first.encode(["Red APPLE, fruit"], 16)
    assert first.decode(tokens[0]) == "red apple, fruit"
    assert words.max() == 3  # red apple , fruit


def test_texts_begin_and_end_with_their_tokens_and_are_cut_and_filled_to_one_length():
    whole = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "##gy", "a"])
    tokens, words = whole.encode(["a doggy", "a a a a a a", "zebra"], 6)
    assert tokens.tolist() == [[2, 7, 5, 6, 3, 0], [2, 7, 7, 7, 7, 3], [2, 1, 3, 0, 0, 0]]
    assert words.tolist() == [[-1, 0, 1, 1, -1, -1], [-1, 0, 1, 2, 3, -1], [-1, 0, -1, -1, -1, -1]]


def test_a_vocabulary_of_berts_file_is_read_with_its_numbers(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[unused0]", *SPECIAL[1:], "dog"]) + "\n")
    whole = WordPiece.read(str(path))
    assert whole.encode(["dog"], 4).tokens.tolist() == [[3, 6, 4, 0]]
    assert (whole.mask, whole.first_plain) == (5, 6)


def test_it_pickles():
    whole = WordPiece.learnt(TEXTS, 60)
    again = pickle.loads(pickle.dumps(whole))
    np.testing.assert_array_equal(again.encode(TEXTS, 9).tokens, whole.encode(TEXTS, 9).tokens)


def test_a_file_that_is_no_vocabulary_is_refused_with_all_that_is_wrong():
    with pytest.raises(ValueError, match=r"no \[MASK\]; .*begin with \[PAD\].*; .*more than once"):
        WordPiece(["dog", "dog", *SPECIAL[:4]])
