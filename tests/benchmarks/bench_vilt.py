"""What an image and a text cost: ViLT, and a transformer that is given a detector's regions first.

    python tests/benchmarks/bench_vilt.py --rounds 3

Both have a transformer of the paper's size (12 blocks of 768) without trained weights. ViLT-B/32
has the patches of an image of 480 x 640 as it scales it; the other one has 36 regions of
torchvision's Faster R-CNN on a ResNet-50 with a pyramid, which sees it with a shorter side of
800. What is compared runs interleaved; the median and the range are told.
"""

import argparse
import statistics
import time

import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from raykb.data.pair_sizes import scaled_size
from raykb.models.vilt import vilt_b_32

REGIONS, WORDS = 36, 40


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    vilt = vilt_b_32(2).eval()
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    tokens = torch.randint(5, 30000, (1, WORDS))
    scaled, whole = torch.randn(1, 3, *scaled_size(480, 640)), torch.rand(3, 480, 640)
    regions = torch.randn(1, REGIONS, 768)

    def fused():
        vilt.visual.encoder(torch.cat([vilt.textual(tokens), regions], 1))

    def with_detector():
        detector([whole])
        fused()

    cases = {
        "ViLT, image and text": lambda: vilt.joint(scaled, tokens),
        "detector, then transformer": with_detector,
        "the transformer alone, of regions": fused,
    }
    found = {name: [] for name in cases}
    with torch.inference_mode():
        for number in range(rounds + 1):  # the first one warms up
            for name, work in cases.items():
                spent = seconds(work)
                found[name] += [spent] if number else []
    for name, each in found.items():
        low, high = min(each), max(each)
        print(f"{name:36} {statistics.median(each):6.2f} s ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
