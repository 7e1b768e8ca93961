"""What transformers' way of marking images becomes in LLaVA's, for tests that compare the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fvexport.encoder.fastvlm.prompt import IMAGE_TOKEN_INDEX


@pytest.fixture(scope="session")
def with_marks() -> Callable[[Sequence[int], int, Sequence[int]], list[int]]:
    """Of token ids with a placeholder per visual token, that placeholder, and the number of each image's visual tokens:
    the ids with one mark per image.
    """

    def call(ids: Sequence[int], image_token_id: int, counts: Sequence[int]) -> list[int]:
        assert sum(token == image_token_id for token in ids) == sum(counts)
        marked, left, room = list[int](), list(counts), 0
        for token in ids:
            if token != image_token_id:
                marked.append(token)
                continue
            if room == 0:
                marked.append(IMAGE_TOKEN_INDEX)
                room = left.pop(0)
            room -= 1
        return marked

    return call
