"""`fvexport.encoder.image.find`: which images a folder has, and an account of everything else in it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from fvexport.core.errors import ImageError, ImageWarning
from fvexport.encoder.image import find_images, search_images
from fvexport.encoder.image.find import DANGLING, HIDDEN, LINKED_TWICE, OTHER, SPECIAL, UNREADABLE


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_and_files(tmp_path):
    touch(tmp_path, "b.png", "a.JPG", "deep/c.webp", "deep/er/d.tiff", "folder.png/e.bmp")
    inside = [tmp_path / name for name in ("a.JPG", "b.png", "deep/c.webp", "deep/er/d.tiff", "folder.png/e.bmp")]
    found = search_images([tmp_path])
    assert found.files == inside
    assert found.notice() == ""
    assert find_images([str(tmp_path / "b.png"), tmp_path / "deep"]) == [inside[1], *inside[2:4]]
    assert find_images([]) == []


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match="path of the image is empty"):
        search_images([""])


def test_everything_left_out_is_counted(tmp_path):
    touch(tmp_path, "a.png", "notes.txt", "clip.mpg", "data.h5", ".hidden.png", ".cache/e.png", ".cache/f.png")
    found = search_images([tmp_path])
    assert found.files == [tmp_path / "a.png"]
    assert {reason: len(paths) for reason, paths in found.left_out.items()} == {OTHER: 3, HIDDEN: 2}
    with pytest.warns(ImageWarning) as caught:
        assert find_images([tmp_path]) == [tmp_path / "a.png"]
    (warning,) = caught
    assert str(warning.message) == found.notice()
    for words in ("left out 5", f"{OTHER}: 3", "clip.mpg", f"{HIDDEN}: 2", ".cache"):
        assert words in found.notice()


def test_files_named_by_the_user_are_kept_whatever_they_are(tmp_path):
    touch(tmp_path, "notes.txt", ".hidden.png")
    assert find_images([tmp_path / "notes.txt", tmp_path / ".hidden.png"]) == [
        tmp_path / "notes.txt",
        tmp_path / ".hidden.png",
    ]


def test_linked_folders_are_followed_once_and_loops_end(tmp_path):
    folder, other = tmp_path / "d", tmp_path / "other"
    touch(folder, "a/1.png")
    touch(other, "0.png", "sub/2.png")
    (folder / "b").symlink_to(other)
    (folder / "b_again").symlink_to(other / "sub")
    (folder / "a/up").symlink_to(folder)
    (other / "back").symlink_to(folder / "a")
    (folder / "c.png").symlink_to(other / "0.png")
    (folder / "self.png").symlink_to("self.png")
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    found = search_images([folder])
    assert found.files == [folder / name for name in ("a/1.png", "b/0.png", "b/sub/2.png")] or found.files == [
        folder / name for name in ("a/1.png", "b/0.png", "b_again/2.png")
    ]
    assert len(found.left_out[DANGLING]) == 2
    assert {path.name for path in found.left_out[LINKED_TWICE]} >= {"up", "c.png"}
    assert "dangling.png" in found.notice()


def test_the_path_without_a_link_wins(tmp_path):
    touch(tmp_path, "z.png", "y/1.png")
    (tmp_path / "a.png").symlink_to("z.png")
    (tmp_path / "b").symlink_to("y")
    found = search_images([tmp_path])
    assert found.files == [tmp_path / "y/1.png", tmp_path / "z.png"]
    assert found.left_out == {LINKED_TWICE: [tmp_path / "a.png", tmp_path / "b"]}


def test_a_folder_that_is_a_link_or_holds_only_one(tmp_path):
    touch(tmp_path, "other/0.png", "only/.keep")
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "only/b").symlink_to(tmp_path / "other")
    assert find_images([tmp_path / "link"]) == [tmp_path / "link/0.png"]
    assert search_images([tmp_path / "only"]).files == [tmp_path / "only/b/0.png"]
    assert len(search_images([tmp_path / "other", tmp_path / "link"]).files) == 2  # each was named by the user


def test_hard_links_are_files_of_their_own(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "b.png").hardlink_to(tmp_path / "a.png")
    assert len(find_images([tmp_path])) == 2


def test_special_files_are_not_opened(tmp_path):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s.png"))
        found = search_images([tmp_path])
    (tmp_path / "null.png").symlink_to("/dev/null")
    assert found.files == [tmp_path / "a.png"]
    assert search_images([tmp_path]).left_out == {
        SPECIAL: [tmp_path / name for name in ("pipe.png", "s.png", "null.png")]
    }


def test_errors(tmp_path):
    with pytest.raises(ImageError, match=r"no image at .*gone\.png"):
        find_images([tmp_path / "gone.png"])
    with pytest.raises(ImageError, match="cannot read"):
        find_images([tmp_path / ("x" * 300)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"no image in folder .*\.tiff$"):
        find_images([tmp_path / "empty"])
    touch(tmp_path, "other/notes.txt")
    (tmp_path / "other/a.png").symlink_to("nowhere")
    with pytest.raises(ImageError, match=r"no image in folder .*left out 2 .*dangling link: 1 .*notes\.txt"):
        find_images([tmp_path / "other"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_folders_without_permission(tmp_path):
    touch(tmp_path, "d/a.png", "d/secret/b.png")
    (tmp_path / "d/secret").chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    code = """
import os, sys
from fvexport.encoder.image import search_images
from PIL import Image
Image.init()  # loads Pillow's plugins while their files can be read
os.setuid(54321)
found = search_images([sys.argv[1]])
print(len(found.files), found.notice())
search_images([sys.argv[1] + "/secret"])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("1 left out 1"), done.stderr
    assert f"{UNREADABLE}: 1" in done.stdout
    assert "secret" in done.stdout
    assert "ImageError: no permission to read folder" in done.stderr


def test_the_order_is_that_of_paths(tmp_path, monkeypatch):
    touch(tmp_path, "a/c.png", "a-b/c.png", "a.png", "a b/1.png", "a/b/1.png", "é/1.png", "B.png", "a/B.png")
    files = search_images([tmp_path]).files
    assert len(files) == 8 and files == sorted(files)
    monkeypatch.chdir(tmp_path)
    assert search_images(["."]).files == [file.relative_to(tmp_path) for file in files]


def test_links_to_what_a_folder_leaves_out(tmp_path):
    touch(tmp_path, "real/a.png", "real/.hidden.png", "real/b.bin")
    for number, name in enumerate(("a.png", ".hidden.png", "b.bin", "b.bin")):
        (tmp_path / f"{number}.png").symlink_to(tmp_path / "real" / name)
    found = search_images([tmp_path])
    assert [file.name for file in found.files] == ["1.png", "2.png", "a.png"]
    assert [file.name for file in found.left_out[LINKED_TWICE]] == ["0.png", "3.png"]
