"""Files of the Hugging Face hub, through its own library: its cache, token, endpoint and offline variables hold."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from tilestream.errors import ConfigError, InputError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
INDEX = ".index.json"
"""End of the name of a file that says in which shard each tensor lies."""

_WEIGHT_FILES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")


def is_hub_id(text: str) -> bool:
    """Whether a value of `weights` names a repository, `owner/name` or `owner/name@revision`, and no file of this machine."""
    return (
        bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?", text))
        and Path(text).suffix not in {*SUFFIXES, ".json"}
        and not Path(text).exists()
    )


def fetch_weights(address: str) -> Path:
    """The weights of `owner/name` or `owner/name@revision`: one file, or the index of shards, which then lie beside it.

    Raises
    ------
    ConfigError, InputError
        As `fetch_file`.
    """
    repository, _, revision = address.partition("@")
    for name in _WEIGHT_FILES:
        try:
            found = fetch_file(repository, name, revision or None)
        except FileNotFoundError:
            continue
        if name.endswith(INDEX):
            for shard in sorted(set(json.loads(found.read_text())["weight_map"].values())):
                fetch_file(repository, shard, revision or None)
        return found
    raise InputError(f"{address} holds none of {', '.join(_WEIGHT_FILES)}. Fetch its weights yourself and give the path.")


def fetch_file(repository: str, name: str, revision: str | None = None, *, way: str = "") -> Path:
    """One file of a repository, from the cache or the hub; `way` is the way out without the hub, where it is not `encoder.weights`.

    Raises
    ------
    ConfigError
        The library that fetches is not installed.
    InputError
        The repository is gated, unknown or out of reach; with the way out.
    FileNotFoundError
        The repository has no such file.
    """
    own = way or f"or fetch {name} on another machine and set encoder.weights to its path"
    try:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"encoder: {repository} is on the Hugging Face hub, and huggingface_hub is not installed. "
            f"Run pip install 'tilestream[hf]', {own}."
        ) from error
    page = f"{constants.ENDPOINT}/{repository}"
    family = HfHubHTTPError.__mro__
    unreached: type[Exception] = family[
        family.index(OSError) - 1
    ]  # root of the errors of the HTTP library, which is another in other versions of the hub's
    try:
        if not constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(repository, name, revision=revision), str):
            with suppress(HfHubHTTPError):  # it answers; what it says is told by the download
                # A download asks for half a minute before it gives up, with a line for each try.
                get_hf_file_metadata(hf_hub_url(repository, name, revision=revision))
        return Path(hf_hub_download(repository, name, revision=revision))
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise InputError(
            f"{repository}: {name} is not in the cache ({constants.HF_HUB_CACHE}) and {why}. Go online once, {own}."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(name) from error
    except GatedRepoError as error:
        raise InputError(
            f"{repository} is gated. Accept its terms at {page}, then set HF_TOKEN to a token of that account (or run `hf auth login`), {own}."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{repository}: no such repository at {constants.ENDPOINT}, or HF_TOKEN may not see it ({page}). Check the name, {own}."
        ) from error
    except HfHubHTTPError as error:
        raise InputError(f"{repository}: {name} cannot be fetched ({type(error).__name__}: {error}). Try again later, {own}.") from error
    except unreached as error:
        raise InputError(
            f"{repository}: {name} is not in the cache ({constants.HF_HUB_CACHE}) and {constants.ENDPOINT} does not answer ({error}). "
            f"Go online once (HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror), {own}."
        ) from error
    except OSError as error:
        raise InputError(
            f"{repository}: {name} cannot be fetched into {constants.HF_HUB_CACHE} ({type(error).__name__}: {error}). "
            f"Check that folder (HF_HOME names another) and the network, {own}."
        ) from error
