"""Finds the place of a pretrained model, and explains why one does not load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NoReturn

import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers import AutoConfig

from fedspzo.errors import InputError, one_line

from .sections import DEMO

_HEADED = "ForSequenceClassification"


@dataclass(frozen=True)
class Source:
    """The place from which a model is loaded.

    Attributes:
        name: a folder, a hub id, or "demo", as the user gave it.
        place: the folder or hub id.
        offline: the hub is out of reach, and the cache alone is used.
        headed: True if the model is known to have a classification head, False if it is known to
            have none. Default None: either may be.
    """

    name: str
    place: str
    offline: bool
    headed: bool | None = None

    @classmethod
    def of(cls, name: str) -> Source:
        """Find the place of a model. Sends the hub one request, if `name` is a hub id."""
        place = str(files("fedspzo.demo") / "model") if name == DEMO else name
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        return cls(name, place, not os.path.isdir(place) and _hub_is_out_of_reach(place))

    def config(self) -> Any:
        """Read the model's config."""
        with self.explained():
            return AutoConfig.from_pretrained(
                self.place, local_files_only=self.offline, trust_remote_code=False
            )

    def head(self) -> tuple[str, ...]:
        """Return the labels of the model's classification head. Empty: it has no such head."""
        config = self.config()
        with self.explained():
            if not any(name.endswith(_HEADED) for name in config.architectures or []):
                return ()
            return tuple(str(config.id2label[number]) for number in sorted(config.id2label))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what a loader raises into an InputError of one line.

        A loader may raise anything, since it reads files of which each value may be wrong.
        """
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            _explain(self, error)


def _hub_is_out_of_reach(name: str) -> bool:
    """Send one request to the hub, and return True if it fails.

    The cache alone is used then, which saves a minute of retries.
    """
    try:
        HfApi().model_info(name, timeout=10)
    except (HfHubHTTPError, HFValidationError):
        return False  # the hub answered, or was not asked; loading will give the reason
    except (HTTPError, OSError):
        return True
    return False


def _explain(source: Source, error: Exception) -> NoReturn:
    reason = one_line(error) or type(error).__name__
    if not isinstance(error, OSError | ValueError | ImportError | SafetensorError):
        reason = f"{type(error).__name__}: {reason}"
    if source.offline and isinstance(error, OSError):
        reason = "the hub is out of reach and no complete copy is cached"
    if len(reason) > 200:
        reason = reason[:200].rstrip() + " ..."
    raise InputError(
        f"[model] name is {source.name!r}, which does not load: {reason}; check the name and the "
        "connection, or give a local folder written by save_pretrained"
    ) from None
