"""Checkpoints on the Hugging Face hub: only the files that are needed, from one commit.

Obeys huggingface_hub's own settings: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import huggingface_hub as hub
from huggingface_hub import constants, errors

from ...core.errors import CheckpointError
from ...core.progress import Progress, silent
from .messages import shown, unfit
from .settings import CONFIG_FILES
from .weights_files import PREFERRED, Located, beside, choose_weights, parse_json


def locate_on_hub(repo: str, *, revision: str | None = None, progress: Progress = silent) -> Located:
    """Downloads a repository's configs and its weights' index or single file; shards on demand.

    Without a connection the cache is read instead.

    Raises:
        CheckpointError: no such repository or revision, gated, or unreachable and not cached.
    """
    remote = _Remote(repo, revision, progress)
    configs = {name: parse_json(repo, path) for name in CONFIG_FILES if (path := remote.optional(name))}
    if remote.names is not None:
        names = remote.names
        chosen = choose_weights(repo, names, lambda name: parse_json(repo, remote.fetch(name)))
        weights, notices = remote.fetch(chosen), beside(names, chosen)
    else:
        cached = (path for name in PREFERRED if (path := remote.optional(name)))
        if (found := next(cached, None)) is None:
            raise remote.absent("its weights are not in the local cache")
        weights, notices = found, ()
    return Located(repo, weights, remote.fetch, remote.optional, configs, remote.commit, notices)


def locate_files(repo: str, names: Iterable[str]) -> list[Path]:
    """Those of a repository's files that it has, on this machine; raises CheckpointError as `locate_on_hub` does."""
    remote = _Remote(repo, None, silent)
    found = [path for name in names if (path := remote.optional(name))]
    if not found and remote.names is None:
        raise remote.absent("none of its files is in the local cache")
    return found


class _Remote:
    """One repository at one commit. `names` is None where only the cache can be read."""

    def __init__(self, repo: str, revision: str | None, progress: Progress) -> None:
        self.repo, self.revision, self.progress = repo, revision, progress
        self.commit: str | None = None
        self.names: set[str] | None = None
        self.reason: Exception | None = None
        if str(constants.HF_HUB_CACHE).startswith("~"):
            raise unfit(repo, "no such folder, and no home folder to download to", "set HF_HOME to a folder")
        try:
            info = hub.HfApi().model_info(repo, revision=revision, timeout=30)
        except (errors.HFValidationError, errors.RevisionNotFoundError) as error:
            raise self._explained(error) from None
        except Exception as error:  # each version of the hub's client has its own errors for lost connections
            self.reason = error  # what was downloaded before can still be used
        else:
            self.commit, self.names = info.sha, {s.rfilename for s in info.siblings or ()}

    def optional(self, name: str) -> Path | None:
        """A file's local path; None where the repository (or, offline, the cache) lacks it."""
        if self.names is not None:
            return self.fetch(name) if name in self.names else None
        try:
            return self._download(name)
        except errors.EntryNotFoundError:
            return None
        except OSError as error:
            raise self._explained(error) from None

    def fetch(self, name: str) -> Path:
        """A file's local path; raises CheckpointError where it cannot be had."""
        try:
            return self._download(name)
        except errors.LocalEntryNotFoundError as error:
            self.reason = self.reason or error
            raise self.absent(f"{shown(name)} is not in the local cache") from None
        except errors.EntryNotFoundError:
            raise unfit(self.repo, f"the repository has no {shown(name)}", "give another revision") from None
        except Exception as error:
            raise self._explained(error) from None

    def absent(self, what: str) -> CheckpointError:
        """The error for what is not cached while the hub cannot be asked."""
        assert self.reason is not None
        if isinstance(self.reason, errors.RepositoryNotFoundError):  # gated ones too
            return self._explained(self.reason)
        if isinstance(self.reason, errors.OfflineModeIsEnabled):
            return unfit(self.repo, f"no such folder, {what}, and HF_HUB_OFFLINE is set", "unset it, or give a folder")
        return unfit(
            self.repo,
            f"no such folder, {what}, and the hub cannot be reached ({shown(self.reason)})",
            f"check the connection, or run `hf download {self.repo}` elsewhere and give the folder",
        )

    def _download(self, name: str) -> Path:
        options: dict[str, Any] = {"local_files_only": self.names is None}
        if "tqdm_class" in inspect.signature(hub.hf_hub_download).parameters:
            options["tqdm_class"] = _bar_for(self.progress, f"downloading {name}")
        # The first file goes by the user's own word, so that the cache remembers what it meant.
        path = Path(hub.hf_hub_download(self.repo, name, revision=self._pin or self.revision, **options))
        self._pin = self.commit = path.parents[len(Path(name).parts) - 1].name
        return path

    _pin: str | None = None

    def _explained(self, error: Exception) -> CheckpointError:
        repo = self.repo
        if isinstance(error, errors.GatedRepoError):
            mend = f"accept its terms at https://huggingface.co/{repo}, then `hf auth login` or set HF_TOKEN"
            return unfit(repo, "the repository is gated, and this account has no access", mend)
        if isinstance(error, errors.RevisionNotFoundError):
            return unfit(repo, f"has no revision {self.revision!r}", "give a branch, tag or commit of it")
        if isinstance(error, errors.RepositoryNotFoundError):
            mend = "check the spelling; for a private repository, `hf auth login` or set HF_TOKEN"
            return unfit(repo, "no such folder, and no such model on the hub", mend)
        if isinstance(error, errors.HFValidationError):
            return unfit(repo, "no such folder, and not a hub id", "check the path")
        if isinstance(error, PermissionError):
            mend = "set HF_HOME to a folder of your own, or give a folder with the files"
            return unfit(repo, f"the cache of the hub may not be used ({shown(error)})", mend)
        return unfit(repo, f"the download failed ({shown(error)})", "check connection and disk space, then try again")


def _bar_for(progress: Progress, task: str) -> type:
    """A bar that draws nothing and passes its count of bytes on."""

    class Bar(hub.utils.tqdm):  # type: ignore[name-defined,misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            progress(task, int(self.n), int(self.total) if self.total else None)

        def update_transfer(self, n: float | None = 1) -> None:
            """Chunked storage counts bytes on the wire too; with this method it needs no second bar."""

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            """Goes with `update_transfer`."""

    return Bar
