"""`tilestream.run`: what the command `run` does, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilestream.config.schema import Config
    from tilestream.runner.driver import Reporter
    from tilestream.runner.summary import Summary


def run(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    restart: bool = False,
    shard: tuple[int, int] | None = None,
    reporter: Reporter | None = None,
) -> Summary:
    """Embed the slides of a config; what the command `run` does.

    Parameters
    ----------
    config : Config, mapping or path
        What to do.
    overrides : sequence of str
        `a.b=c` settings that go before the config's.
    restart : bool
        Delete what the output holds of these slides and start over.
    shard : (i, n), optional
        Do only every n-th slide, starting at the i-th (0-based): for n independent jobs on one output.
    reporter : Reporter, optional
        Hears of the progress.

    Returns
    -------
    Summary
        Also written to `run.json` in the output.

    Raises
    ------
    ConfigError, InputError, OutputError, InterruptedRunError
        As the exit codes of the command line say; slides that are finished by then stay finished.
    """
    from tilestream.config.load import load_config
    from tilestream.config.schema import Config
    from tilestream.runner.driver import Reporter, Run

    checked = config if isinstance(config, Config) else load_config(config, overrides)
    return Run(checked, restart=restart, shard=shard, reporter=reporter or Reporter()).execute()
