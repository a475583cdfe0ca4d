"""When AutoCLINT validates, predicts, searches and stops: rules over what an epoch has shown.

The official code's, section 3.5 of its sheet: an epoch is 30 steps; the first prediction comes
after one. From then on a prediction is worth handing in when waiting has lasted W seconds and the
network has become better since the last one; W grows by 2 s with each, to 90 s at most. The first
sign that nothing more is to be gained asks for a search of augmentations, the next ends the game.

A strategy holds no clock and no network, so a test can walk it through any game.
"""

from dataclasses import dataclass, field

from raykb.augment.autoclint.settings import AutoClint

_BETTER = 1.001  # by which factor a score has to be, to be handed in
_LATE = 20  # epochs after which a lack of progress means something
_KEPT = 50  # best scores that are remembered


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch has shown.

    Attributes:
        number: from 1.
        inner: of them in this call of ``train``.
        score: validation score, or the stand-in of one.
        lr: learning rate.
        call_s: seconds of this call so far.
        left_s: seconds of the game that are left.
        epoch_s: seconds of an epoch.
        test_s: seconds of a prediction.
    """

    number: int
    inner: int
    score: float
    lr: float
    call_s: float
    left_s: float
    epoch_s: float
    test_s: float


@dataclass
class Strategy:
    """The state of a game's decisions.

    Attributes:
        settings: the thresholds.
        samples: training examples.
        video: whether examples are videos, for which there is no search.
        predictions: handed in so far.
        wait_s: W.
        best: highest score so far.
        done: whether the game has ended.
        wanted: whether a sign to end was seen, which asks for the search first.
        searched: whether there was a search.
    """

    settings: AutoClint
    samples: int
    video: bool = False
    predictions: int = 0
    wait_s: float = 0.0
    best: float = -1.0
    done: bool = False
    wanted: bool = False
    searched: bool = False
    _best_inner: bool = False
    _at_prediction: float = 0.0
    _train: list[float] = field(default_factory=list)
    _scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wait_s = self.settings.wait_s

    @property
    def validates(self) -> bool:
        """Whether the newest epoch is worth a validation; else the newest counts as the best."""
        enough = self.predictions >= min(10, max(3, self.samples // 1000))
        return enough or min(self._train[-20:], default=0.0) > self.settings.valid_from

    def trained(self, train_score: float) -> None:
        """Take note of an epoch's training score."""
        self._train.append(train_score)

    def leaves(self, epoch: Epoch) -> bool:
        """Return whether it is time to predict; take note of the epoch, and of what it ends."""
        if epoch.score > self.best:
            self.best, self._best_inner = epoch.score, True
        self._scores = sorted([*self._scores, epoch.score])[-_KEPT:]
        late, perfect = self._time_is_up(epoch), self.best > self.settings.perfect
        tired = epoch.lr < self._least_lr or self._stays_too_long(epoch)
        if late or (perfect and not self.video):
            self.done = True
        elif perfect or tired or self._stands_still(epoch):
            self.done, self.wanted = self.wanted, True
        if not self.settings.anytime:
            return self.done
        improved = self._best_inner and self.best > _BETTER * self._at_prediction
        due = epoch.call_s > self.wait_s and improved
        if due and epoch.number > 1:
            grown = self.wait_s + self.settings.wait_more_s
            self.wait_s = min(grown, self.settings.wait_most_s)
        return epoch.number <= 1 or due or perfect or tired or self.done

    def predicted(self) -> None:
        """Take note of a prediction, which the best epoch's network made."""
        self.predictions += 1
        self._best_inner, self._at_prediction = False, self.best

    def searches(self, epoch: Epoch) -> bool:
        """Return whether it is time for the search of augmentations."""
        recent = self._train[-5:]
        ripe = self.wanted or (len(recent) == 5 and sum(recent) / 5 > 0.995)
        return (
            ripe
            and not (self.searched or self.video or self.done)
            and self.settings.candidates > 0
            and 0.01 < epoch.score < 0.995
            and epoch.left_s > self.settings.search_left_s
        )

    def has_searched(self) -> None:
        """Take note of the search: rules are looser from now on."""
        self.searched = True

    @property
    def _least_lr(self) -> float:
        return 1e-8 if self.searched else 1e-6

    def last_s(self, epoch_s: float, test_s: float) -> float:
        """Return the seconds that are kept for the last epoch and prediction."""
        return self.settings.reserve_s + 1.5 * (test_s + 2 * epoch_s)

    def _time_is_up(self, epoch: Epoch) -> bool:
        return epoch.left_s < self.last_s(epoch.epoch_s, epoch.test_s)

    def _stays_too_long(self, epoch: Epoch) -> bool:
        """Whether a call has lasted a large part of all epochs that there is time for."""
        most = epoch.number + epoch.left_s // max(epoch.epoch_s, 1e-9)
        share = self.settings.patience_share * (3 if self.searched else 1)
        return epoch.number >= _LATE and epoch.inner > share * most

    def _stands_still(self, epoch: Epoch) -> bool:
        """Whether the kept scores hardly differ, for how far they are from 1."""
        spread = (self._scores[-1] - self._scores[0]) * (1 - self._scores[-1])
        return epoch.number > _LATE and 1e-8 < spread < (1e-5 if self.searched else 1e-3)
