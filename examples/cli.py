"""A command line from a configuration file: no code of ours in it, everything in `cli_config.yaml`.

python examples/cli.py fit --config examples/cli_config.yaml
python examples/cli.py fit --config examples/cli_config.yaml --trainer.callbacks+=DeviceStatsMonitor
python examples/cli.py fit --help
"""

from lightning.pytorch.cli import LightningCLI

if __name__ == "__main__":
    LightningCLI()
