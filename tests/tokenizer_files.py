"""The tokenizer of the golden models, for tests and for the campaign."""

from __future__ import annotations

import json
from pathlib import Path

CHATML = {"<|endoftext|>": "pad", "<|im_start|>": None, "<|im_end|>": "eos"}
SENTENCES = (
    "You are a helpful assistant.", "What is in this picture?", "A cat sits on the mat and looks at the camera.",
    "How many people are there?", "The rocket stands on its pad, and nobody is near it.",
    "Was ist auf dem Bild zu sehen?", "Describe the image in detail.", "user", "assistant", "system",
)  # fmt: skip


def write_tokenizer(folder: Path, *, image_token: bool = False, files: str = "tokenizer.json") -> None:
    """Writes a ChatML tokenizer for the golden models into `folder`.

    Byte-level BPE as Qwen2's: its pattern, its special tokens, 319 tokens in all; as one `tokenizer.json`, or as
    `vocab.json` and `merges.txt`. With `image_token` the 320th is `<image>`, as in transformers' form.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    own = Tokenizer(models.BPE())
    own.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    own.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    own.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        SENTENCES * 2,
        trainers.BpeTrainer(vocab_size=319 - len(CHATML), initial_alphabet=alphabet, show_progress=False),
    )
    own.add_special_tokens([*CHATML, *(["<image>"] if image_token else [])])
    assert own.token_to_id("<|im_end|>") == 318
    added = {
        str(own.token_to_id(token)): AddedToken(token, special=True).__getstate__()
        for token in (*CHATML, *(["<image>"] if image_token else []))
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 8192,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if files == "tokenizer.json":
        own.save(str(folder / "tokenizer.json"))
    else:
        own.model.save(str(folder))
