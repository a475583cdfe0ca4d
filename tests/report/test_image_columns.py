import numpy as np
import torch

from raykb.report.images import image_columns, stacked


def test_image_columns_shows_each_image_under_its_columns_title():
    columns = {"grey": torch.zeros(2, 1, 4, 4).byte(), "red": torch.full((2, 3, 4, 4), 9).byte()}
    panels = image_columns(columns).axes
    assert [panel.get_title() for panel in panels] == ["grey", "red"]
    assert [panel.images[0].get_array().shape for panel in panels] == [(12, 6), (12, 6, 3)]


def test_images_stand_unchanged_one_above_the_other_in_frames_of_a_pixel():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    column = stacked(images)
    for number, image in enumerate(images):
        own = column[6 * number : 6 * number + 6]
        assert np.array_equal(own[1:-1, 1:-1], image.movedim(0, -1))
        edges = (own[0], own[-1], own[:, 0], own[:, -1])
        assert all((edge == 204).all() for edge in edges)
