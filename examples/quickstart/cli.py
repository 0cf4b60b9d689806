"""A command line from a configuration file: no code of ours in it, everything in `cli_config.yaml`.

python examples/quickstart/cli.py fit --config examples/quickstart/cli_config.yaml
python examples/quickstart/cli.py fit --config examples/quickstart/cli_config.yaml --trainer.max_epochs=3
python examples/quickstart/cli.py fit --help
"""

from lightning.pytorch.cli import LightningCLI

if __name__ == "__main__":
    LightningCLI()
