#!/usr/bin/env bash
# Install peers for `python -m benchmarks --peers DIR`. Optional: peers that are not there are left out.
#
#     benchmarks/peers/install.sh DIR [geo_inference] [torchgeo_loop] [xarray_spatial]
#
# DIR/<peer>/ becomes a virtual environment, and the script of the same name in this folder runs in it. Where pip looks is
# pip's own business (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CONSTRAINT). Two variables choose what it does not:
#
#     TORCH="torch==2.14.1 torchvision==0.29.1"    installed first; CPU builds are enough on a machine without a GPU
#     PYTHON=python3.11                            the interpreter of the environments
set -euo pipefail

folder=${1:?"usage: $0 DIR [PEER...]"}
shift
[ $# -gt 0 ] || set -- geo_inference torchgeo_loop xarray_spatial

for peer in "$@"; do
    case $peer in
    geo_inference) wanted="geo-inference==3.2.4 hydra-core==1.3.2" ;; # hydra: imported, but named nowhere in its metadata
    torchgeo_loop) wanted="torchgeo==0.8.1 requests" ;; # requests: the same
    xarray_spatial) wanted="xarray-spatial==0.5.3 numba shapely" ;; # the polygonizer alone, without PyTorch
    *) echo "$peer: no such peer; there are geo_inference, torchgeo_loop and xarray_spatial" >&2 && exit 2 ;;
    esac
    "${PYTHON:-python3.11}" -m venv "$folder/$peer"
    # shellcheck disable=SC2086  # several words each
    [ "$peer" = xarray_spatial ] || "$folder/$peer/bin/pip" install ${TORCH:-torch torchvision}
    # shellcheck disable=SC2086
    "$folder/$peer/bin/pip" install $wanted
    "$folder/$peer/bin/pip" freeze >"$folder/$peer/freeze.txt"
    echo "$peer: installed in $folder/$peer"
done
