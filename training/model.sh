#!/bin/sh
# Build the shipped model from nothing; `make model` calls it. Every step may be cut and called
# again: it goes on where it was. The minutes are those that the shipped weights took on two cores
# of a server CPU, which other work shared; seeds are fixed in the scripts. More minutes are better.
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
# Clips are drawn once and kept: on a CPU drawing costs more than learning.
faces="--shelf $data/faces --shelf-clips 240"
$python -m training.vae --out "$data/vae" --minutes "$(minutes 20)" --device "$device" $faces

fed="--speech $speech --vae $data/vae/export --front-end $data/audio/encoder.safetensors"
fed="$fed --device $device"
moving="--shelf $data/clips --shelf-clips 279"
still="--shelf $data/clips-still --shelf-clips 98 --still 1"
test -e "$data/reader.safetensors" ||
    $python -m training.reading latents --out "$data/reader.safetensors" --minutes 5 $fed $moving
test -e "$data/judge.safetensors" ||
    $python -m training.reading pixels --out "$data/judge.safetensors" --minutes 2.2 $faces
# Heads that turn, then with the reader as a loss, then heads that keep still.
whole=$(minutes 33)
$python -m training.student flow --out "$data/student" --minutes "$whole" \
    --call-minutes "$(minutes 10.7)" $fed $moving
fed="$fed --reader $data/reader.safetensors --reader-weight 6"
$python -m training.student flow --out "$data/student" --minutes "$whole" \
    --call-minutes "$(minutes 5)" $fed $moving
$python -m training.student flow --out "$data/student" --minutes "$whole" $fed $still

mkdir -p models/tiny
rm -rf models/tiny/score models/tiny/vae
cp -r "$data/student/export" models/tiny/score
cp -r "$data/vae/export" models/tiny/vae
$python -m training.avatars --out models/tiny/avatars
$python -m training.demo_speech --speech "$speech" --out models/tiny/speech
$python -m training.evaluate --model tiny=models/tiny/score --vae models/tiny/vae \
    --speech "$speech" --judge "$data/judge.safetensors" --out "$data/evaluation" \
    --steps 1 8 --characters 4 --seconds 8
