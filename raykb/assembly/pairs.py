"""Images with captions: what ViLT and its rivals read, and how they are judged."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from raykb.assembly.builder import Config, Data
from raykb.assembly.supervised import Supervised
from raykb.augment.augmentations import augmentation
from raykb.config import Problems, build
from raykb.data.feed import InPlace
from raykb.data.image_views import ClassifierView
from raykb.data.order import Shuffled
from raykb.data.pair_sizes import largest_side, scaled
from raykb.data.pair_views import PairView
from raykb.data.pairs import Fit, PairSet, captions_of
from raykb.data.source import Source
from raykb.data.views import VIEWS
from raykb.data.wordpiece import WordPiece
from raykb.engine.arguments import at_least, check_settings, or_none, refuse, within
from raykb.engine.loop import Evaluation
from raykb.engine.recipe import Recipe
from raykb.engine.seeding import stream_seed
from raykb.evaluate.backbone import BackboneEvaluation, JudgedBy
from raykb.evaluate.fine_tuning import FineTuning
from raykb.evaluate.pair_alignment import PairAlignment
from raykb.evaluate.pair_retrieval import PairRetrieval, spread
from raykb.evaluate.pair_scores import SCORES
from raykb.evaluate.prompts import Prompted
from raykb.recognition import PAIR_METHODS


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What becomes of captions; a section of the config.

    Their length is ``model.text_length``, and their vocabulary has ``model.vocabulary`` tokens.

    Args:
        vocabulary: file of a WordPiece vocabulary, as BERT's vocab.txt; null to learn one from the
            training captions.
        hidden: share of the words that are hidden, whole, in [0, 1).
        prompt: text for the class ``{}``.
        pictures: of the test that are retrieved, at equal distances in its order; null for all.
            Scores of pairs take as long as the square of them.
        shorter: side in pixels that the shorter side of each image is scaled to, which keeps its
            shape, the longer one limited (the paper: 384); null where ``data`` says the size.
    """

    vocabulary: str | None = None
    hidden: float = 0.15
    prompt: str = "{}"
    pictures: int | None = None
    shorter: int | None = None

    def __post_init__(self) -> None:
        positive = or_none(at_least(1))
        check_settings(self, hidden=within(0, 1), pictures=positive, shorter=positive)

    def shown(self, test: PairSet) -> PairSet:
        """Return the pairs of a test that are retrieved."""
        return test.subset(np.array(spread(len(test), self.pictures or len(test))))


@dataclass(frozen=True)
class Pairs:
    """A data set with captions that was opened, and the vocabulary of these.

    Attributes:
        labelled: the images; none is decoded yet, but for one.
        vocabulary: of the captions.
        fit: gives each image the size that its shape wants; None where all have one.
    """

    labelled: Supervised
    vocabulary: WordPiece
    fit: Fit | None = None

    @classmethod
    def opened(cls, config: Config, problems: Problems) -> "Pairs":
        """Open the data set, and learn or read the vocabulary.

        Args:
            config: the sections ``data``, ``captions`` and ``model``.
            problems: take what is wrong.

        Raises:
            ConfigError: something cannot be opened; all that is wrong is named.
        """
        texts: Sequence[str] = ()
        with problems.at("data", config["data"]):
            labelled = Supervised.opened(config["data"])
            texts = captions_of(labelled.train)
            captions_of(labelled.test)  # there must be some
        problems.refuse()
        with problems.at("captions", config["captions"]):
            size, asked = config["model"]["vocabulary"], build(Captions, config["captions"])
            path = asked.vocabulary
            found = WordPiece.learnt(texts, size) if path is None else WordPiece.read(path)
            if len(found) > size:
                raise ValueError(
                    f"vocabulary: has {len(found)} tokens, and the model {size}; set "
                    f"model.vocabulary to {len(found)}"
                )
        problems.refuse()
        if asked.shorter is None:
            return cls(labelled, found)
        with problems.at("captions", config["captions"]):
            refuse(_of_one_shape(config, asked.shorter))
        problems.refuse()
        patch = config["model"]["patch"]
        side = largest_side(asked.shorter, patch)
        padded = replace(labelled, shape=(labelled.shape[0], side, side))
        return cls(padded, found, functools.partial(scaled, shorter=asked.shorter, patch=patch))

    def kept(self, text: str) -> "Pairs":
        """Return the same with the vocabulary that a run began with, a token a line."""
        return replace(self, vocabulary=WordPiece(text.splitlines()))

    @property
    def stand_in(self) -> Data:
        """What a rehearsal has to know of it."""
        own = self.labelled.stand_in
        return Data(
            samples=own.samples, classes=own.classes, channels=own.channels, supervised=False
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.labelled.shape

    def read(self, length: int) -> dict[str, PairSet]:
        """Decode ``train`` and ``test``, with captions of ``length`` tokens."""
        parts = {"train": self.labelled.train, "test": self.labelled.test}
        return {
            part: PairSet.loaded(records, self.labelled.options, self.vocabulary, length, self.fit)
            for part, records in parts.items()
        }


def _of_one_shape(config: Config, shorter: int) -> list[str]:
    """Return what of a config takes images to be squares, or to have no padding."""
    view, size = config["view"], config["data"].get("image_size")
    problems = []
    if shorter < config["model"]["patch"]:
        problems.append(f"shorter: {shorter}, must be at least model.patch")
    if size is not None:
        problems.append(f"shorter: {shorter}, must be null where data.image_size is {size}")
    if view["name"] != "crop_flip" or view["padding"] or view["flip"]:
        problems.append(
            f"shorter: {shorter}, must be null with this view, which would move what is padding; "
            "set view.name to crop_flip, view.padding to 0 and view.flip to false"
        )
    return problems


def pair_data(
    *, config: Config, seed: int, train: PairSet, test: PairSet, vocabulary: WordPiece
) -> Data:
    """Return images with captions in shuffled epochs, and what a network of both is judged by.

    Args:
        config: the sections ``view``, ``recipe``, ``captions``, ``model``, ``method``,
            ``augmentation``, of the copy that is fine-tuned, and ``fine_tuning``.
        seed: of order, views, hidden words and false images.
        train: pairs to learn from.
        test: pairs to be judged by.
        vocabulary: of the captions.
    """
    recipe, form = build(Recipe, config["recipe"]), build(VIEWS, config["view"])
    asked = build(Captions, config["captions"])
    plain_tokens = vocabulary.first_plain, len(vocabulary)
    cells = drawn_patches(config, train.images.images.shape[2:])
    view = PairView(form, train, vocabulary.mask, plain_tokens, asked.hidden, cells)
    order = Shuffled(len(train), recipe.batch_size, seed, keep_last=recipe.keep_last)
    scored_by, plain = PAIR_METHODS[config["method"]["name"]].scored_by, ClassifierView(form)
    scores = SCORES[scored_by]
    names = [asked.prompt.format(name.lower()) for name in test.classes]
    prompts = torch.from_numpy(vocabulary.encode(names, test.tokens.shape[1]).tokens)
    shown = asked.shown(test)
    own: dict[str, Evaluation] = {
        "retrieval": PairRetrieval(shown, plain, scores),
        "prompts": Prompted(test, plain, prompts, scores),
    }
    if scored_by == "matching":  # it learns of texts and images that are seen together
        own["alignment"] = PairAlignment(shown, plain)
    tuned_by = stream_seed(seed, "protocols")
    varied = ClassifierView(form, augmentation(config["augmentation"], seed=tuned_by))
    by = JudgedBy(train, test, varied, len(test.classes), tuned_by)
    tuned = BackboneEvaluation(by, {"fine_tuning": build(FineTuning, config["fine_tuning"])})
    return Data(
        feed=InPlace(Source(train, order, view, seed, "trainer")),
        samples=len(train),
        classes=len(test.classes),
        channels=train.images.images.shape[1],
        evaluations=own | {"": tuned},
        on_the_way=own,
        supervised=False,
    )


def drawn_patches(config: Config, shape: Sequence[int]) -> int:
    """Return the patches of images (H, W) if a method sees a draw of them, else 0."""
    most, patch = config["method"].get("most_patches"), config["model"]["patch"]
    count = math.prod(side // patch for side in shape)
    return 0 if most is None or count <= most else count
