#!/bin/sh
# The golden tests on this machine's GPU, then its speed, then PEFT's: one command
# for the day there is a GPU, from the root of the repository.
#
#   sh crates/ol-cuda/benches/on-device.sh            builds with cargo
#   sh crates/ol-cuda/benches/on-device.sh FOLDER     runs FOLDER/it and FOLDER/device
#
# `on-device.sh --build FOLDER` puts the two programs there, for a machine without
# cargo. PYTHON names the Python with torch and PEFT; ADAPTERS says how many
# adapters are tried, "1 10 100 1000" if it is not set, at most 2,000.
set -eu
root=$(pwd)
test -f "$root/crates/ol-cuda/Cargo.toml" || { echo "run it from the root of the repository" >&2; exit 1; }
built() {
  cargo "$1" --release -p ol-cuda "--$1" "$2" --no-run --message-format json |
    sed -n "s/.*\"name\":\"$2\".*\"executable\":\"\([^\"]*\)\".*/\1/p" | tail -n 1
}
if [ "${1:-}" = --build ]; then
  mkdir -p "$2"
  cp "$(built test it)" "$2/it"
  cp "$(built bench device)" "$2/device"
  exit 0
fi
folder=${1:-}
if [ -z "$folder" ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  sh "$0" --build "$folder"
fi
export CARGO_MANIFEST_DIR="$root/crates/ol-cuda"
"$folder/it" --exact passes::a_real_device_agrees_or_is_absent --nocapture
"$folder/device"
"${PYTHON:-python3}" crates/ol-cuda/benches/peft.py || echo "PEFT is not measured"
