"""Policies: what may be one, what it draws, and that it does to each image what it drew."""

import json
import pickle
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

import raykb.augment.draws
from raykb.augment.contact_sheet import contact_sheet
from raykb.augment.draws import NOTHING, Draws, apply_draws
from raykb.augment.policy import Policy
from raykb.data.operations import NAMES, OPERATIONS, apply_operation
from raykb.engine.seeding import keyed_uniform, stream_seed

RAGGED = Policy(
    [
        [("Invert", 0.5, 0.3)],
        [("Rotate", 0.7, 0.2), ("Cutout", 0.9, 1.0), ("ShearX", 0.5, 0.8)],
        [("Equalize", 1.0, 0.0), ("Invert", 0.25, 0.0)],
    ]
)
POLICIES = {
    "ragged": RAGGED,
    "pairs": Policy.random(5, 2, 0),
    "many": Policy.random(40, 2, 1),
    "deep": Policy.random(3, 5, 2),
    "all operations": Policy([[(name, 0.8, 0.3)] for name in NAMES]),
}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())


def pictures(count: int, channels: int = 3, size: tuple[int, int] = (12, 10)) -> Tensor:
    g = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, *size), generator=g).to(torch.uint8)


def uniforms(policy: Policy, count: int, seed: int = 0) -> Tensor:
    return keyed_uniform(stream_seed(seed, "test"), np.arange(count), policy.draws)


def naive(policy: Policy, image: Tensor, numbers: list[float]) -> Tensor:
    """One image, one operation after the other, as the definition says."""
    sub_policy = policy.sub_policies[int(numbers[0] * len(policy))]
    height, width = image.shape[1:]
    for turn, (name, probability, level) in enumerate(sub_policy):
        gate, sign, x, y = numbers[1 + 4 * turn : 5 + 4 * turn]
        if gate < probability:
            operation = OPERATIONS[name]
            v = float(operation.magnitude(torch.tensor(level, dtype=torch.float64)))
            v = -v if operation.mirrored and sign < 0.5 else v
            centre = torch.tensor([[x * width, y * height]], dtype=torch.float64)
            image = apply_operation(image[None], name, v, centre=centre)[0]
    return image


# What may be a policy.


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"policy: 8 problem\(s\)") as error:
        Policy(
            [
                [("rotat", 2, 0.1), ("Invert", 0.1)],
                [],
                "ab",
                [("ShearX", float("nan"), True), (7, 0.0, 1.0)],
            ]
        )
    lines = str(error.value).splitlines()
    assert "'rotat' (did you mean 'Rotate'?); allowed: ShearX, ShearY" in lines[1]
    assert lines[2].endswith("operation 0, probability: 2; allowed: a number in [0, 1]")
    assert "('Invert', 0.1); allowed: (operation, probability, level)" in lines[3]
    assert "sub-policy 1: []; allowed: one or more triples" in lines[4]
    assert "sub-policy 2: 'ab'" in lines[5]
    assert "sub-policy 3, operation 0, probability: nan" in lines[6]


@pytest.mark.parametrize("wrong", [[], None, "Invert", 3])
def test_something_else_is_no_policy(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"allowed: (a list of sub-policies|one or more)"):
        Policy(wrong)  # type: ignore[arg-type]


def test_equal_policies_are_equal_hash_equally_and_survive_pickle_and_repr() -> None:
    rows = [[["Invert", 0.5, 0]], [["Color", 1, 0.25], ["Cutout", 0.1, 1]]]
    policy = Policy(rows)
    policy.apply(pictures(3), torch.Generator())  # with its table made
    again = [pickle.loads(pickle.dumps(policy)), eval(repr(policy))]
    assert all(other == policy and hash(other) == hash(policy) for other in again)
    assert policy != Policy(rows[:1])
    rows[0][0][0] = "Rotate"
    assert policy.sub_policies[0][0] == ("Invert", 0.5, 0.0)
    with pytest.raises(AttributeError):
        policy.sub_policies = []  # type: ignore[misc]


@each_policy
def test_json_keeps_every_float(policy: Policy) -> None:
    text = policy.to_json({"seed": 3, "score": [0.1, None]})
    assert Policy.from_json(text) == policy == Policy.from_json(policy.to_json())
    assert json.loads(text)["provenance"] == {"seed": 3, "score": [0.1, None]}
    assert json.loads(text)["version"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[", "not JSON"),
        ("[]", "format 'list'"),
        ('{"version": 1}', "format None; allowed: an object with 'format': 'raykb.policy'"),
        ('{"format": "raykb.policy", "version": 2}', "version 2; allowed: 1"),
        ('{"format": "raykb.policy", "version": 1}', "no key 'sub_policies'"),
        ('{"format": "raykb.policy", "version": 1, "sub_policies": {}}', "a list of sub-policies"),
    ],
)
def test_json_that_is_no_policy_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy.from_json(text)


def test_random_policies_depend_on_the_seed_alone() -> None:
    assert Policy.random(4, 3, 7) == Policy.random(4, 3, 7) != Policy.random(4, 3, 8)
    g = torch.Generator().manual_seed(7)
    first, second = Policy.random(4, 3, g), Policy.random(4, 3, g)
    assert first != second
    assert (len(first), first.depth, first.draws) == (4, 3, 13)
    large = Policy.random(2000, 2, 0).statistics()
    assert large.mean_probability == pytest.approx(0.5, abs=0.02)
    assert large.mean_level == pytest.approx(0.5, abs=0.02)
    assert min(large.usage.values()) > 200  # of 267 expected


# What it draws.


def test_draws_in_closed_form() -> None:
    numbers = torch.zeros(4, RAGGED.draws, dtype=torch.float64)
    numbers[:, 0] = torch.tensor([0.0, 1 / 3 + 1e-9, 0.99, 0.5])
    numbers[0, 1] = 0.5  # not below the probability 0.5: does not fire
    numbers[1, 1:] = torch.tensor([0.69, 0.49, 0, 0, 0.0, 0.9, 0.25, 0.75, 0.1, 0.5, 0, 0])
    numbers[3, 1:] = 0.95
    draws = RAGGED.draw(numbers)
    assert draws.sub_policy.tolist() == [0, 1, 2, 1]
    invert, rotate, cutout, shear, equalize = map(
        NAMES.index, ("Invert", "Rotate", "Cutout", "ShearX", "Equalize")
    )
    assert draws.operation.tolist() == [
        [NOTHING, NOTHING, NOTHING],
        [rotate, cutout, shear],
        [equalize, invert, NOTHING],
        [NOTHING, NOTHING, NOTHING],
    ]
    assert draws.magnitude[1].tolist() == pytest.approx([18.0, 0.2, 0.18])  # -(-18), mirrored
    assert draws.centre[1, 1].tolist() == [0.25, 0.75]
    assert draws.fired.tolist() == [0, 3, 2, 0]


def test_a_policy_uses_the_first_numbers_of_a_wider_table() -> None:
    wide = torch.rand(9, RAGGED.draws + 6, dtype=torch.float64)
    for name in ("operation", "magnitude", "centre", "sub_policy"):
        one, other = (getattr(RAGGED.draw(u), name) for u in (wide, wide[:, : RAGGED.draws]))
        assert torch.equal(one, other)


@pytest.mark.parametrize("wrong", [torch.rand(3, 20), torch.rand(3, 12, dtype=torch.float64)])
def test_wrong_uniforms_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"uniforms: .*>= 13\); make them with keyed_uniform"):
        RAGGED.draw(wrong)


def test_frequencies_are_the_closed_forms() -> None:
    policy, count = Policy.random(6, 2, 5), 20000
    draws, statistics = policy.draw(uniforms(policy, count)), policy.statistics()
    fired = draws.fired.double()
    assert fired.mean().item() == pytest.approx(statistics.fired_operations, abs=0.02)
    assert (fired == 0).double().mean().item() == pytest.approx(
        statistics.no_op_probability, abs=0.01
    )
    assert torch.bincount(draws.sub_policy).double().div(count).tolist() == pytest.approx(
        [1 / 6] * 6, abs=0.01
    )


def test_statistics_in_closed_form() -> None:
    one = Policy([[("Invert", 0.5, 0.2), ("Color", 0.5, 0.6)]]).statistics()
    assert (one.fired_operations, one.no_op_probability) == (1.0, 0.25)
    assert (one.mean_probability, one.mean_level) == (0.5, pytest.approx(0.4))
    two = Policy([[("Invert", 1.0, 0.2)], [("Color", 0.0, 0.2), ("Invert", 0.5, 0.2)]]).statistics()
    assert (two.fired_operations, two.no_op_probability) == (0.75, 0.25)
    assert two.usage == {name: {"Invert": 2, "Color": 1}.get(name, 0) for name in NAMES}


def test_duplicates_are_equal_sequences_of_names_and_the_first_stays() -> None:
    a_b, b_a = [("Color", 0.1, 0.2), ("Invert", 0.3, 0.4)], [("Invert", 0, 0), ("Color", 0, 0)]
    again, alone = [("Color", 0.9, 0.9), ("Invert", 0.9, 0.9)], [("Color", 0.5, 0.5)]
    policy = Policy([a_b, b_a]) + Policy([again, alone])
    assert policy == Policy.concatenate([Policy([a_b]), Policy([b_a, again, alone])])
    assert policy.without_duplicates() == Policy([a_b, b_a, alone])


# What it does.


@pytest.mark.parametrize("channels", [1, 3])
@each_policy
def test_images_undergo_what_the_definition_says(policy: Policy, channels: int) -> None:
    images, numbers = pictures(60, channels), uniforms(policy, 60)
    before = images.clone()
    out = policy.apply(images, draws=policy.draw(numbers))
    expected = [naive(policy, i, u) for i, u in zip(images, numbers.tolist(), strict=True)]
    assert torch.equal(out, torch.stack(expected))
    assert torch.equal(images, before)
    assert not torch.equal(out, images)


@each_policy
def test_an_image_does_not_depend_on_its_batch(policy: Policy) -> None:
    images, draws = pictures(50), policy.draw(uniforms(policy, 50))
    out = apply_draws(images, draws)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_draws(images[order], draws[order]), out[order])
    assert torch.equal(apply_draws(images[7:8], draws[7:8]), out[7:8])
    layout = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply_draws(layout, draws), out)


def test_several_policies_share_one_call_for_each_operation_and_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, calls = pictures(30), []

    def counted(images: Tensor, name: str, *rest: object, **others: object) -> Tensor:
        calls.append(name)
        return apply_operation(images, name, *rest, **others)  # type: ignore[arg-type]

    policies = list(POLICIES.values())
    parts = [policy.draw(uniforms(policy, 30, seed)) for seed, policy in enumerate(policies)]
    expected = torch.cat([apply_draws(images, part) for part in parts])
    monkeypatch.setattr(raykb.augment.draws, "apply_operation", counted)
    together = Draws.concatenate(parts)
    out = apply_draws(images.repeat(len(parts), 1, 1, 1), together)
    assert torch.equal(out, expected)
    present = [set(turn.tolist()) - {NOTHING} for turn in together.operation.unbind(1)]
    assert len(calls) == sum(map(len, present)) <= len(NAMES) * together.operation.shape[1]


def test_apply_takes_its_numbers_from_the_generator_given_or_torchs_own() -> None:
    images = pictures(40)
    one, other = (RAGGED.apply(images, torch.Generator().manual_seed(s)) for s in (3, 4))
    assert not torch.equal(one, other)
    assert torch.equal(one, RAGGED.apply(images, torch.Generator().manual_seed(3)))
    torch.manual_seed(3)
    assert torch.equal(one, RAGGED.apply(images))
    few = RAGGED.apply(images[:5], torch.Generator().manual_seed(3))
    assert torch.equal(few, one[:5])


MIRRORED = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"]
FACTORS = ["Contrast", "Color", "Brightness", "Sharpness"]


@pytest.mark.parametrize("name", [*MIRRORED, *FACTORS])
def test_the_middle_level_changes_nothing(name: str) -> None:
    images = pictures(20)
    assert torch.equal(Policy([[(name, 1.0, 0.5)]]).apply(images), images)


@pytest.mark.parametrize("name", ["Solarize", "Posterize"])
def test_the_highest_level_changes_nothing(name: str) -> None:
    images = pictures(20)
    assert torch.equal(Policy([[(name, 1.0, 1.0)]]).apply(images), images)


@pytest.mark.parametrize("wrong", [pictures(4), pictures(5).float(), pictures(5)[0]])
def test_images_that_do_not_fit_the_draws_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"allowed: torch.uint8 \(5, C, H, W\)"):
        apply_draws(wrong, RAGGED.draw(uniforms(RAGGED, 5)))


# As a transform of single images.


def as_pillow(image: Tensor) -> PIL.Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(array if len(image) == 3 else array[:, :, 0])


def as_array(image: PIL.Image.Image) -> Tensor:
    return torch.from_numpy(np.atleast_3d(np.asarray(image)).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_transform_gives_back_the_kind_it_was_given(channels: int) -> None:
    image, transform = pictures(1, channels)[0], Policy([[("Invert", 1, 0)]]).to_transform()
    pillow = transform(as_pillow(image))
    assert pillow.mode == {1: "L", 3: "RGB"}[channels]
    assert torch.equal(as_array(pillow), 255 - image)
    assert torch.equal(transform(image), 255 - image)
    wrapped, label = transform(tv_tensors.Image(image), 3)
    assert type(wrapped) is tv_tensors.Image
    assert torch.equal(wrapped, 255 - image)
    assert label == 3


def test_transform_draws_as_apply_does() -> None:
    images, transform = pictures(20), pickle.loads(pickle.dumps(RAGGED.to_transform()))
    torch.manual_seed(5)
    one_by_one = torch.stack([transform(image) for image in images])
    torch.manual_seed(5)
    assert torch.equal(one_by_one, RAGGED.apply(images))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.rand(3, 4, 4),
        pictures(2),
        PIL.Image.new("RGBA", (4, 4)),
        tv_tensors.Mask(pictures(1)[0]),
    ],
    ids=["float", "batch", "RGBA", "mask"],
)
def test_transform_refuses_what_it_cannot_do_right(wrong: object) -> None:
    with pytest.raises(TypeError, match="allowed: a PIL image of mode L or RGB"):
        RAGGED.to_transform()(wrong)


class Pictures(Dataset[Tensor]):
    """Equal images, read through a transform."""

    def __init__(self, policy: Policy, read: Callable[[Tensor], object]) -> None:
        self.image, self.transform, self.read = pictures(1)[0], policy.to_transform(), read

    def __len__(self) -> int:
        return 16

    def __getitem__(self, _: int) -> Tensor:
        out = self.transform(self.read(self.image))
        return out if isinstance(out, Tensor) else as_array(out)


@pytest.mark.parametrize("read", [as_pillow, lambda image: image], ids=["PIL", "tensor"])
def test_transform_in_the_workers_of_a_loader(read: Callable[[Tensor], object]) -> None:
    def epoch(seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        dataset = Pictures(Policy([[("Rotate", 1.0, 1.0), ("Cutout", 1.0, 1.0)]]), read)
        return torch.cat(list(DataLoader(dataset, batch_size=2, num_workers=2, generator=g)))

    out = epoch(0)
    assert len({image.numpy().tobytes() for image in out}) > 12  # workers draw apart
    assert torch.equal(out, epoch(0))
    assert not torch.equal(out, epoch(1))


# To look at.


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet_has_a_row_per_image_and_a_column_per_sub_policy(channels: int) -> None:
    policy = Policy([[("Invert", 0.0, 0.0)], [("Color", 0.25, 0.5), ("Posterize", 0.5, 1.0)]])
    images = pictures(3, channels)
    sheet = contact_sheet(policy, images, columns=8, seed=1)
    assert list(sheet) == [
        "original",
        "sub-policy 0\nInvert\np 0.00, level 0.00",
        "sub-policy 1\nColor\np 0.25, level 0.50\nPosterize\np 0.50, level 1.00",
    ]
    original, inverted, _ = sheet.values()
    assert torch.equal(original, images)
    assert torch.equal(inverted, 255 - images)  # every operation fires on the sheet
    assert len(contact_sheet(policy, images, columns=1)) == 2
