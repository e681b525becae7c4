"""The command `sec`: runs SEC nodes. What operators and submitters use is `secctl`.

A command a file. What a command runs is imported when it is run, so that `sec health`, which probes run every few seconds, loads no SEC node.
"""

import click

from sec import __version__
from sec.cli import bench, chaos, debug, dev, health, node, sim


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "SEC", "max_content_width": 120})
@click.version_option(__version__, prog_name="sec")
def main() -> None:
    """Runs saga execution coordinators (SEC nodes).

    A cluster is several `sec node` with the same etcd and the same prefix. Every option can be given in the environment too:
    `sec node --etcd` is SEC_NODE_ETCD. Submit and look at sagas with `secctl`.
    """


for _command in (node.node, dev.dev, chaos.chaos, bench.bench, sim.sim, debug.debug, health.health):
    main.add_command(_command)
