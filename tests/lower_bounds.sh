#!/bin/sh
# Tests the core rows of the support matrix with lightning and torchmetrics at their declared lower bounds.
#
# A second, small environment in .venv-lower: those packages alone, everything else from .venv. torch stays as it is:
# an older one would bring gigabytes of CUDA packages.
set -eu
cd "$(dirname "$0")/.."
bound() { sed -n "s/^ *\"$1>=\([0-9.]*\)\".*/\1/p" pyproject.toml | head -n 1; }
lower=.venv-lower
wanted="lightning==$(bound lightning) pytorch-lightning==$(bound lightning) torchmetrics==$(bound torchmetrics)"
if [ ! -e "$lower/installed" ] || [ "$(cat "$lower/installed")" != "$wanted" ]; then
    echo "==> $wanted in $lower"
    .venv/bin/python -m venv --clear --without-pip "$lower"
    site=$("$lower/bin/python" -c "import site; print(site.getsitepackages()[0])")
    # shellcheck disable=SC2086
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$site" $wanted
    rest=$(.venv/bin/python -c "import site; print(site.getsitepackages()[0])")
    echo "import site; site.addsitedir('$rest')" >"$site/rest.pth"
    echo "$wanted" >"$lower/installed"
fi
# Left out: what needs several processes, and pytorch_lightning, whose Trainer took no callbacks of lightning then.
exec "$lower/bin/python" -m pytest -q -n auto -p no:cacheprovider \
    tests/modes/test_support.py tests/modes/test_steps.py tests/modes/test_loggers.py \
    tests/callbacks/test_resume.py tests/callbacks/test_guard.py \
    -k "not ddp and not fsdp and not tp- and not 2d- and not pytorch_lightning" "$@"
