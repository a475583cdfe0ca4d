"""Every threshold of AutoCLINT; a section of the config. Defaults are the official code's."""

from dataclasses import dataclass

from raykb.engine.arguments import above, at_least, check_settings, within


@dataclass(frozen=True, kw_only=True)
class AutoClint:
    """How the any-time game is played.

    Args:
        anytime: predict on the way; if not, once, when time is nearly up.
        test_time_flip: from the second prediction on, mean logits with those of the mirror images.
        side: longest side of the input in pixels; twice that of shapes longer than 2 to 1.
        frames: most frames of a video.
        valid_share: of the training part, held out to validate on.
        valid_most: most examples of that.
        steps: of what is called an epoch here.
        batch_size: examples of a step; twice that of more than 16 classes, half of it of videos.
        lr: of a batch of 32, after the climb over ``warmup`` epochs from half of it.
        warmup: epochs.
        patience: epochs without a lower training loss, after which the rate is halved.
        momentum: of SGD, Nesterov's.
        weight_decay: of all weights.
        valid_from: training score from which on validation is worth its time.
        perfect: validation score from which on nothing is to be gained.
        wait_s: first wait between two predictions.
        wait_more_s: by what it grows with each.
        wait_most_s: its largest value.
        reserve_s: seconds that are kept for the last prediction.
        patience_share: share of all epochs that a call may take before it predicts.
        candidates: of the search of augmentations; 0 for none.
        search_left_s: seconds that must be left for it.
        copies: passes over the validation images for each candidate.
        block: images over which a pass is scored; the best block counts.
        keep: candidates whose sub-policies are used.
        cache: decode and resize once, and keep the result on the device.
    """

    anytime: bool = True
    test_time_flip: bool = True
    side: int = 64
    frames: int = 8
    valid_share: float = 0.1
    valid_most: int = 256
    steps: int = 30
    batch_size: int = 32
    lr: float = 0.025
    warmup: int = 5
    patience: int = 10
    momentum: float = 0.9
    weight_decay: float = 2.5e-4
    valid_from: float = 0.9
    perfect: float = 0.997
    wait_s: float = 1.0
    wait_more_s: float = 2.0
    wait_most_s: float = 90.0
    reserve_s: float = 180.0
    patience_share: float = 0.2
    candidates: int = 100
    search_left_s: float = 120.0
    copies: int = 6
    block: int = 16
    keep: int = 5
    cache: bool = True

    def __post_init__(self) -> None:
        counts = ("frames", "valid_most", "steps", "patience", "copies", "keep")
        rules = dict.fromkeys(counts, at_least(1)) | {
            "side": at_least(16),
            "block": at_least(2),
            "batch_size": at_least(4),
            "warmup": at_least(0),
            "candidates": at_least(0),
            "valid_share": within(0, 1),
            "momentum": within(0, 1),
            "lr": above(0),
            "patience_share": above(0),
        }
        waits = ("wait_s", "wait_more_s", "wait_most_s", "reserve_s", "search_left_s")
        rules |= dict.fromkeys((*waits, "weight_decay"), at_least(0))
        check_settings(self, **rules)
