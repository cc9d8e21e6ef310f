"""Near-copies: the picture of another image, saved anew, resized, cropped, turned or marked.

Small grey pictures are compared in two steps: coarsely, each with all, and then in their details,
aligned, with the few most similar ones. Thresholds: ``benchmarks/near_copies.py``.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdpl.data.inspection import PICTURE_EDGE as _EDGE

_COARSE, _SIMILAR, _CANDIDATES = 12, 0.7, 2  # edge, least correlation, number kept
_LEVELS = ((4, 0.65), (2, 0.65), (1, 0.75))  # reduction, and least correlation of details
_STEPS = 4
_FARTHEST = 0.25  # of an edge that a copy is moved, stretched or turned by
_OVERLAP = 0.7
_BLOCK = 512  # images compared at once
_PAIRS = 128  # pairs aligned at once

Item = TypeVar("Item")


def near_copies(
    items: Iterable[Item], picture: Callable[[Item], bytes], measured: int
) -> Iterator[tuple[Item, int | None]]:
    """Yield each item with the position of the item that it is a near-copy of, or None.

    That is the first such item before it, among the leading ``measured`` ones; only their pictures
    are kept.
    """
    remaining, start = iter(items), 0
    kept, coarse = torch.empty(0, 1, _EDGE, _EDGE, dtype=torch.uint8), torch.empty(0, _COARSE**2)
    places = torch.empty(0, dtype=torch.long)
    while block := list(islice(remaining, _BLOCK)):
        contents = [picture(item) for item in block]
        rows = torch.tensor([row for row, content in enumerate(contents) if content])
        first = dict[int, int]()
        if len(rows) and (len(kept) or start < measured):
            joined = torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8)
            pictures, positions = joined.view(-1, 1, _EDGE, _EDGE), start + rows
            is_measured = positions < measured
            kept = torch.cat([kept, pictures[is_measured]])
            coarse = torch.cat([coarse, _coarse(pictures[is_measured])])
            places = torch.cat([places, positions[is_measured]])
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # on small tensors, threads mostly wait for each other
            first = _first(pictures, positions, kept, coarse, places)
            torch.set_num_threads(threads)
        yield from ((item, first.get(start + row)) for row, item in enumerate(block))
        start += len(block)


def _first(
    pictures: Tensor, positions: Tensor, kept: Tensor, coarse: Tensor, places: Tensor
) -> dict[int, int]:
    """Map positions of near-copies to the first position in ``places`` that they are copies of."""
    first = dict[int, int]()
    for view in (pictures, pictures.flip(-1)):
        similar = _coarse(view) @ coarse.T
        similar[places >= positions[:, None]] = -1
        values, columns = similar.topk(min(_CANDIDATES, similar.shape[1]))
        rows, ranks = (values > _SIMILAR).nonzero(as_tuple=True)
        matches = columns[rows, ranks]
        parts = [slice(i, i + _PAIRS) for i in range(0, max(1, len(rows)), _PAIRS)]
        same = [_same(kept[matches[part]].float(), view[rows[part]].float()) for part in parts]
        chosen = torch.cat(same)
        for row, column in zip(rows[chosen].tolist(), matches[chosen].tolist(), strict=True):
            copy, original = int(positions[row]), int(places[column])
            first[copy] = min(original, first.get(copy, original))
    return first


def _coarse(pictures: Tensor) -> Tensor:
    small = F.adaptive_avg_pool2d(pictures.float(), _COARSE).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True))


def _same(first: Tensor, second: Tensor) -> Tensor:
    """Compare pairs of pictures [K, 1, S, S] in their details; bool [K]."""
    motion, alive = torch.eye(2, 3).repeat(len(first), 1, 1), torch.arange(len(first))
    for level, least in _LEVELS:
        if not len(alive):
            break
        picture, other = (F.avg_pool2d(side[alive], level) for side in (first, second))
        motion = _align(picture, other, motion)
        grid = F.affine_grid(motion, list(picture.shape), align_corners=False)
        inside = (grid.abs().amax(-1) <= 1).float()[:, None]
        moved = F.grid_sample(other, grid, padding_mode="border", align_corners=False)
        far = (motion - torch.eye(2, 3)).abs().amax((1, 2)) > _FARTHEST
        good = _correlation(_details(picture), _details(moved), inside) > least
        good &= ~far & (inside.mean((1, 2, 3)) > _OVERLAP)
        motion, alive = motion[good], alive[good]
    return torch.zeros(len(first), dtype=torch.bool).index_fill(0, alive, True)


def _align(picture: Tensor, other: Tensor, motion: Tensor) -> Tensor:
    """Refine the affine motion [K, 2, 3] that moves one picture onto another, by Gauss-Newton.

    Lucas and Kanade, "An iterative image registration technique with an application to stereo
    vision", IJCAI 1981, with the gain and offset of brightness.
    """
    count, edge = len(picture), picture.shape[-1]
    picture, other = ((side - side.mean((2, 3), keepdim=True)) for side in (picture, other))
    picture, other = (
        side / side.std((2, 3), keepdim=True).clamp(min=1e-3) for side in (picture, other)
    )
    padded = F.pad(other, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * edge / 4
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * edge / 4
    stack = torch.cat([other, across, down], 1)
    plain = F.affine_grid(torch.eye(2, 3)[None], [1, 1, edge, edge], align_corners=False)
    where = torch.cat([plain.flatten(1, 2).mT, torch.ones(1, 1, edge**2)], 1)
    for _ in range(_STEPS):
        grid = F.affine_grid(motion, list(picture.shape), align_corners=False)
        moved = F.grid_sample(stack, grid, padding_mode="border", align_corners=False).flatten(2)
        inside = (grid.abs().amax(-1) <= 1).flatten(1)[:, None]
        value, across, down = (moved[:, i : i + 1] for i in range(3))
        slopes = torch.cat([across * where, down * where, value, torch.ones_like(value)], 1)
        slopes = slopes * inside
        normal = slopes @ slopes.mT + 0.01 * torch.eye(8)
        step = torch.linalg.solve(normal, slopes @ (picture.flatten(2) - value).mT)
        motion = motion + step[:, :6, 0].view(count, 2, 3).clamp(-0.1, 0.1)
    return motion


def _details(pictures: Tensor) -> Tensor:
    """Return what differs from the neighbourhood, of similar contrast everywhere."""
    details = pictures - F.avg_pool2d(pictures, 5, 1, 2, count_include_pad=False)
    energy = F.avg_pool2d(details**2, 9, 1, 4, count_include_pad=False)
    return details / (energy.sqrt() + 4)  # 4 of 256: noise stays small


def _correlation(picture: Tensor, other: Tensor, inside: Tensor) -> Tensor:
    count = inside.sum((2, 3), keepdim=True).clamp(min=1)
    picture, other = (
        (side - (side * inside).sum((2, 3), keepdim=True) / count) * inside
        for side in (picture, other)
    )
    return F.cosine_similarity(picture.flatten(1), other.flatten(1))
