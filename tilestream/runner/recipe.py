"""What decides the numbers in a store: kept beside them, and compared before anything is added to them."""

from __future__ import annotations

from typing import Any

from tilestream import __version__
from tilestream.config.schema import Config
from tilestream.errors import OutputError, without_credentials
from tilestream.stages.worker_settings import EncoderFacts
from tilestream.store.slide_store import FORMAT, SlideStore
from tilestream.tiles.coords import find_file, places_digest


def slide_recipe(recipe: dict[str, Any], config: Config, slide: str) -> dict[str, Any]:
    """The recipe of one slide: with the digest of the file that its tiles come from, where there is one.

    Raises
    ------
    InputError
        That file cannot be read.
    """
    if config.tiles.chosen is None:
        return recipe
    return {**recipe, "tiles": {**recipe["tiles"], "from_sha256": places_digest(find_file(config.tiles.chosen, slide))}}


def make_recipe(config: Config, facts: EncoderFacts) -> dict[str, Any]:
    """The settings that an output depends on, as plain values; where and how fast it runs is left out."""
    recipe = {
        "format": FORMAT,
        "tilestream": __version__,
        "source": config.source.model_dump(mode="json", exclude={"backend", "decode"}),
        "tiles": config.tiles.model_dump(mode="json", exclude={"chosen"}),
        "encoder": {
            "name": config.encoder.name,
            "args": dict(config.encoder.args),
            "weights_sha256": facts.digest,
            "precision": facts.precision,
            "dim": facts.dim,
            "vector": facts.vector,
        },
        "context": None if config.context is None else config.context.model_dump(mode="json", exclude={"schedule"}),
        "pool": config.pool.model_dump(mode="json"),
        "windows": config.windows.model_dump(mode="json") if "windows" in config.output.save else None,
        "output": {"save": sorted(config.output.save), "dtype": config.output.dtype},
        "compute": {"shard_tiles": config.compute.shard_tiles, "cpu_capability": facts.cpu_capability},
    }
    return without_credentials(recipe)


def flatten(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def check_recipe(store: SlideStore, recipe: dict[str, Any], slide: str) -> None:
    """Refuse to add to a store that other settings made.

    Raises
    ------
    OutputError
        Naming each field that differs, with both values.
    """
    attributes = store.attributes
    if attributes is None:
        return
    was, now = flatten(attributes.get("recipe", {})), flatten(recipe)
    if "encoder.vector" not in was:  # older stores do not say it
        now.pop("encoder.vector", None)
    changed = [f"{key} was {was.get(key)!r} and is now {now.get(key)!r}" for key in sorted(was | now) if was.get(key) != now.get(key)]
    if changed:
        hint = (
            "Set ATEN_CPU_CAPABILITY (default, avx2, avx512) to what it was. "
            if any("compute.cpu_capability" in each for each in changed)
            else ""
        )
        raise OutputError(
            f"{store.folder.address} was made by another recipe: {'; '.join(changed)}. "
            f"{hint}Choose another output, or start {slide} over with --restart (its embeddings are then deleted)."
        )


def check_source(store: SlideStore, fingerprint: str, mpp: float | None, slide: str) -> None:
    """Refuse to add to a store whose image was another file, or was read at another resolution.

    Raises
    ------
    OutputError
        Naming what differs.
    """
    attributes = store.attributes
    if attributes is None:
        return
    source = attributes.get("source", {})
    if source.get("fingerprint") != fingerprint:
        raise OutputError(
            f"{slide}: the image's bytes are not those that {store.folder.address} was made from (source.fingerprint). Use --restart to start over."
        )
    if source.get("mpp") != mpp:
        raise OutputError(f"{slide}: source.mpp was {source.get('mpp')} and is now {mpp}. Use --restart to start over.")
