import torch

from raykb.report.images import image_columns


def test_image_columns_shows_each_image_under_its_columns_title():
    columns = {"grey": torch.zeros(2, 1, 4, 4).byte(), "red": torch.full((2, 3, 4, 4), 9).byte()}
    panels = image_columns(columns).axes
    assert len(panels) == 4
    assert [panel.get_title() for panel in panels[:2]] == ["grey", "red"]
    assert panels[3].images[0].get_array().shape == (4, 4, 3)
