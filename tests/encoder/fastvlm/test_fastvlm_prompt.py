"""From a conversation to token ids: ChatML, marks for images, and a real tokenizer built here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fvexport.core.errors import PromptError
from fvexport.encoder.checkpoint.source import locate
from fvexport.encoder.fastvlm.generate import TextStream
from fvexport.encoder.fastvlm.prompt import IMAGE_TOKEN_INDEX, Conversation, segments, tokenize
from fvexport.encoder.fastvlm.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")

WriteTokenizer = Callable[..., None]

# tokenizer_config.json of Qwen2's releases.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, write_tokenizer: WriteTokenizer) -> Any:
    """With `<image>` as a token, as in transformers' form: the harder case."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, image_token=True)
    return transformers.AutoTokenizer.from_pretrained(folder)


def text_of(parts: list[str | None]) -> str:
    return "".join("<image>" if part is None else part for part in parts)


@pytest.mark.parametrize(
    "conversation",
    [
        [{"role": "user", "content": "<image>\nWhat is this?"}],
        [{"role": "user", "content": "Look at this: <image> and at\nnothing else."}],
        [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "<image>\nWhat is this?"},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "Are you sure?"},
        ],
        [{"role": "user", "content": "Text alone: 2 + 2?"}],
    ],
)
def test_text_is_qwens_own_chat_template(tokenizer: Any, conversation: Conversation) -> None:
    wanted = tokenizer.apply_chat_template(
        conversation, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert text_of(segments(conversation, wanted.count("<image>"))) == wanted


def test_where_images_go() -> None:
    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(segments("What is it?", 1)) == f"{head}<image>\nWhat is it?{tail}"  # as predict.py has it
    assert text_of(segments("What are they?", 2)) == f"{head}<image>\n<image>\nWhat are they?{tail}"
    assert text_of(segments("What is it?<image>", 1)) == f"{head}What is it?<image>{tail}"
    assert text_of(segments("What is it?", 0)) == f"{head}What is it?{tail}"
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    assert segments([{"role": "user", "content": parts}], 1) == segments("<image>\nWhat is it?", 1)
    wrapped = segments("What is it?", 1, mark="<im_start><image><im_end>")  # mm_use_im_start_end
    assert text_of(wrapped) == f"{head}<im_start><image><im_end>\nWhat is it?{tail}"
    turns = [
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "It is an <image>."},  # its words are text
        {"role": "user", "content": "And <image>?"},
    ]
    assert [part for part in segments(turns, 2) if part is None] == [None, None]
    assert "an <image>." in str(segments(turns, 2)[2])


def test_special_tokens_are_single_ids(tokenizer: Any) -> None:
    ids = tokenize(tokenizer, segments("What is in this picture?", 1))
    vocabulary = tokenizer.get_vocab()
    start, end = vocabulary["<|im_start|>"], vocabulary["<|im_end|>"]
    assert ids.count(start) == 3 and ids.count(end) == 2 and ids.count(IMAGE_TOKEN_INDEX) == 1
    assert ids[0] == start and ids[-1] == tokenizer.encode("\n")[-1]
    assert vocabulary["<image>"] not in ids
    shown = tokenizer.decode([i for i in ids if i != IMAGE_TOKEN_INDEX], skip_special_tokens=True)
    assert shown == "system\nYou are a helpful assistant.\nuser\n\nWhat is in this picture?\nassistant\n"


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), max_size=30).filter(str.strip)


@pytest.fixture(scope="module")
def processor(tokenizer: Any) -> Any:
    """What transformers' FastVLM checkpoints are released with, at 128 x 128: four tokens for each image."""
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    images = clip.CLIPImageProcessorPil(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})
    return transformers.LlavaProcessor(images, tokenizer, patch_size=64, vision_feature_select_strategy="full")


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=3))
def test_ids_are_the_processors_own(
    tokenizer: Any, processor: Any, with_marks: Callable[..., list[int]], around: list[str]
) -> None:
    """transformers expands `<image>` to its placeholders and tokenizes all at once; LLaVA tokenizes piece by piece."""
    images = len(around) - 1
    parts = segments([{"role": "user", "content": "<image>".join(around)}], images)
    pictures = [Image.new("RGB", (130, 140))] * images or None
    wanted = processor(text=text_of(parts), images=pictures)["input_ids"][0]
    assert tokenize(tokenizer, parts) == with_marks(list(wanted), processor.image_token_id, [4] * images)


@pytest.mark.parametrize(
    ("conversation", "images", "message"),
    [
        ("<image><image>\nWhat is it?", 1, "2 <image> marks and 1 image came"),
        ("<image>\nWhat is it?", 2, "1 <image> mark and 2 images came"),
        ("<image>\nWhat is it?", 0, "1 <image> mark and 0 images came"),
        ("", 0, "asks nothing"),
        ("<image>\n", 1, "asks nothing"),
        ([], 0, "must end with a question"),
        ([{"role": "system", "content": "Be brief."}], 0, "must end with a question"),
        ([{"role": "assistant", "content": "Hello."}], 0, "turn 1 .* must be the user's; found 'assistant'"),
        ([{"role": "user", "content": "A?"}, {"role": "user", "content": "B?"}], 0, "turn 2 .* the assistant's"),
        ([{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}], 0, "must end with a question"),
        ([{"role": "system", "content": "<image>"}, {"role": "user", "content": "A?"}], 0, "in the system message"),
        ([{"role": "user", "content": 7}], 0, "text or a list of parts; found int"),
        ([{"role": "user", "content": [{"type": "video"}]}], 0, "a part of a message must be"),
    ],
)
def test_what_is_refused(conversation: Conversation, images: int, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        segments(conversation, images)


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
def test_both_layouts_of_files(
    fastvlm_dir: Path, tmp_path: Path, write_tokenizer: WriteTokenizer, tokenizer: Any, files: str
) -> None:
    for file in fastvlm_dir.glob("*"):
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).symlink_to(file)  # as the hub's cache has them
    write_tokenizer(tmp_path, files=files)
    found = load_tokenizer(locate(tmp_path))
    text = "<|im_start|>user\nWas ist das? 日本 🚀<|im_end|>\n"
    assert found(text).input_ids == tokenizer(text).input_ids
    assert found.eos_token == "<|im_end|>"


def test_text_comes_in_whole_characters(tokenizer: Any) -> None:
    text = "Grüße: 日本 🚀, naïve — cafés\n\nEnd."
    ids = tokenizer(text).input_ids
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.end() == stream.text == text
    assert "" in pieces and not any("\ufffd" in piece for piece in pieces)

    cut = TextStream(tokenizer)
    half = tokenizer("a🚀").input_ids[:-1]
    assert "".join(cut.add(token) for token in half) == "a"
    assert set(cut.end()) == {"\ufffd"}  # what was never completed is shown as such
    assert cut.text == tokenizer.decode(half)


def test_special_tokens_are_not_text(tokenizer: Any) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer("Yes<|im_start|>, a cat").input_ids
    assert "".join(map(stream.add, ids)) + stream.end() == "Yes, a cat"
