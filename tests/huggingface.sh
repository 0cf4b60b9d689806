#!/bin/sh
# Runs the tests of the transformers callback in an environment of their own, laid over the one that the others have.
set -e
overlay=.venv-huggingface
test -x $overlay/bin/python || .venv/bin/python -m venv $overlay
.venv/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])" \
  > "$($overlay/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")/below.pth"
$overlay/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "transformers>=4.46" "accelerate>=0.30"
exec $overlay/bin/python -m pytest -q tests/huggingface "$@"
