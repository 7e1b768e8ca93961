from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st
from limits import fuzz, only_our_errors
from mutations import json_files

from fvexport.export.manifest import Manifest

SOUND = [json.loads(file.read_text()) for file in sorted((Path(__file__).parents[1] / "data/manifests").glob("*.json"))]


@pytest.mark.parametrize("content", SOUND)
def test_sound_manifests_are_read(content: dict[str, object]) -> None:
    Manifest.from_json(json.dumps(content), "manifest.json")


@fuzz(examples=150, content=st.sampled_from(SOUND).flatmap(json_files))
def test_manifest(content: bytes) -> None:
    with only_our_errors():
        Manifest.from_json(content.decode("utf-8", "replace"), "manifest.json")
