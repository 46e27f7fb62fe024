#!/usr/bin/env bash
# What only a GPU can show, within ten minutes of one large one; the tables go into docs/benchmarks.md.
#
#   benchmarks/gpu.sh                 full-size SDXL and SD1.5 with random weights: nothing to download
#   benchmarks/gpu.sh --small         the same at small size, on any machine, printed only
#
# RETIPAIR_PYTHON names the Python that has retipair; default: the one of .venv, else python.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${RETIPAIR_PYTHON:-$(test -x .venv/bin/python && echo .venv/bin/python || echo python)}
case " $* " in
*" --small "*) small=--small base=random:tiny-sd15 repeats=1 ;;
*) small='' base=random:sdxl repeats=5 ;;
esac
"$PYTHON" benchmarks/gpu.py "$@"
"$PYTHON" benchmarks/memory.py $small # each way to save memory, beside its estimate; printed only
exec "$PYTHON" benchmarks/tricks.py --base $base --repeats $repeats # printed only
