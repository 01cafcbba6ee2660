"""Planes of latents in coding order are those that training's own functions make, and come back as they were."""

import numpy as np
import pytest
import torch

from latcodec.backends.hyperprior_context.quadtree import (
    NUM_STEPS,
    coding_order,
    gather_valid,
    merge_quadtree_steps,
    scatter_valid,
    split_quadtree,
    split_quadtree_step,
    valid_masks,
)


@pytest.mark.parametrize("shape", [(8, 4, 6), (12, 5, 7), (6, 1, 1), (5, 2, 3)])
def test_steps_are_those_of_training(shape):
    planes = np.random.default_rng(0).integers(-99, 99, shape).astype(np.int32)
    expected = split_quadtree(torch.from_numpy(planes)[None], coding_order(shape[0]))
    found = [split_quadtree_step(planes, step, np.int64) for step in range(NUM_STEPS)]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.int64 and np.array_equal(one, other[0].numpy())
    halves = split_quadtree_step(np.stack([planes, -planes]), 2)
    assert halves.dtype == planes.dtype and np.array_equal(halves[1], -found[2])
    for steps in (found, np.concatenate(found)):
        assert np.array_equal(merge_quadtree_steps(steps, shape[1:]), planes)


@pytest.mark.parametrize("shape", [(8, 4, 6), (12, 5, 7), (6, 1, 1)])
def test_what_lies_beyond_the_border_is_not_picked(shape):
    planes = 1 + np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    masks = valid_masks(shape[0], shape[1:])
    parts = [gather_valid(split_quadtree_step(planes, step), mask) for step, mask in enumerate(masks)]
    assert np.array_equal(np.sort(np.concatenate(parts)), planes.ravel())
    again = [scatter_valid(part, mask) for part, mask in zip(parts, masks, strict=True)]
    assert all(np.array_equal(one, split_quadtree_step(planes, step)) for step, one in enumerate(again))
