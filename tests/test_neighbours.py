"""Nearest training images: a planted copy is found in every space, and distances have the unit they claim."""

import pytest
import torch

from metrics.neighbours import BLOCK, Neighbourhood, nearest
from utils import UserError


def pixels(count, seed=0):
    return torch.randint(0, 256, (count, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_nearest_equals_the_whole_distance_matrix():
    references, queries = pixels(BLOCK + 50), pixels(20, seed=1)
    distances, places = nearest(queries, references)
    whole = torch.cdist(queries.double(), references.double())
    assert torch.equal(places, whole.argmin(1))
    assert torch.allclose(distances, whole.min(1).values)


@pytest.mark.parametrize("offset", [0, 1e4])  # large means must not hide a copy behind rounding
def test_a_copy_is_at_distance_0_on_either_side_of_a_block(offset):
    references = pixels(BLOCK + 50).double() + offset
    distances, places = nearest(references[[3, BLOCK + 7]], references)
    assert distances.tolist() == [0, 0] and places.tolist() == [3, BLOCK + 7]


def test_an_image_is_not_its_own_neighbour():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    distances, places = nearest(line, line, own=torch.arange(4))
    assert distances.tolist() == [1, 1, 2, 4] and places.tolist() == [1, 0, 1, 2]
    single = nearest(line[:2], line[:2], own=torch.arange(2))
    assert single[1].tolist() == [1, 0]  # never themselves, however few there are


def test_the_unit_is_the_median_distance_between_neighbours():
    line = torch.tensor([[0.0], [2.0], [4.0], [8.0], [16.0]])  # to the nearest other: 2, 2, 2, 4, 8
    around = Neighbourhood(line, torch.Generator().manual_seed(0))
    assert around.typical == 2 and sorted(around.spread.tolist()) == [1, 1, 1, 2, 4]
    distances, places = around.nearest(torch.tensor([[4.0], [10.0]]))
    assert distances.tolist() == [0, 1] and places.tolist() == [2, 3]


def test_copies_are_counted_and_new_images_are_not():
    references = pixels(500)
    around = Neighbourhood(references, torch.Generator().manual_seed(0))
    fakes = torch.cat((references[:3], pixels(17, seed=1)))
    distances, _ = around.nearest(fakes)
    copies = around.copies(distances)
    assert copies[:3].all() and copies[3:].sum() <= 2  # 1 % of new images are as near by luck


def test_training_images_without_distances_are_refused():
    with pytest.raises(UserError, match="at least 2 training images; 1 were given"):
        Neighbourhood(pixels(1), torch.Generator())
    with pytest.raises(UserError, match="exact double"):
        Neighbourhood(torch.zeros(10, 3), torch.Generator())
