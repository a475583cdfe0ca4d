"""What a protocol that reads features alone looks at."""

from types import SimpleNamespace


def judged(train, test, classes=None):
    """Return features of training and test images as of a backbone under evaluation."""
    classes = classes or int(max(train.labels.max(), test.labels.max())) + 1
    return SimpleNamespace(train=train, test=test, by=SimpleNamespace(classes=classes, seed=0))
