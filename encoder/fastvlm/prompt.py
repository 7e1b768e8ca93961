"""A conversation -> ChatML text -> token ids, with marks where images go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""`{"role": "user", "content": "<image>\\nWhat is this?"}`, as transformers' chat templates take it; the content may be
a list of `{"type": "image"}` and `{"type": "text", "text": …}` too. Roles: system (first alone), user, assistant."""

Conversation: TypeAlias = str | Sequence[Message]
"""A question, or several turns that begin with the user's (after a system message, if any) and end with it."""
