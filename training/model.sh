#!/bin/sh
# Build the shipped model from nothing; `make model` calls it. Every step may be cut and called
# again: it goes on where it was. The minutes are estimates for two cores: the whole chain has not
# been run to its end yet, and no weights are shipped.
#
#   DATA    where everything grows                    build/training
#   DEVICE  cpu or cuda                               cpu
#   SCALE   of all minutes: 2 trains twice as long    1
set -eu
cd "$(dirname "$0")/.."
data=${DATA:-build/training}
device=${DEVICE:-cpu}
scale=${SCALE:-1}
python=.venv/bin/python

minutes() { awk "BEGIN { print $1 * $scale }"; }

speech="$data/speech"
$python -m training.data.speech --out "$speech" --hours 2.5
$python -m training.audio --speech "$speech" --out "$data/audio"
$python -m training.vae --out "$data/vae" --minutes "$(minutes 180)" --device "$device"

fed="--speech $speech --vae $data/vae/export --front-end $data/audio/encoder.safetensors"
fed="$fed --shelf $data/clips --device $device"
test -e "$data/reader.safetensors" ||
    $python -m training.reading latents --out "$data/reader.safetensors" --minutes 3 $fed
test -e "$data/judge.safetensors" ||
    $python -m training.reading pixels --out "$data/judge.safetensors" --minutes 8
$python -m training.student flow --out "$data/student" --minutes "$(minutes 90)" $fed \
    --reader "$data/reader.safetensors" --reader-weight 2

mkdir -p models/tiny
rm -rf models/tiny/score models/tiny/vae
cp -r "$data/student/export" models/tiny/score
cp -r "$data/vae/export" models/tiny/vae
$python -m training.evaluate --model tiny=models/tiny/score --vae models/tiny/vae \
    --speech "$speech" --judge "$data/judge.safetensors" --out "$data/evaluation" --steps 1 2 4 8
