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

# What is drawn is kept: on a CPU drawing costs more than learning. The other family costs ten
# times as much to draw, so pictures alone show it.
faces="--shelf $data/faces --shelf-clips 1200"
$python -m training.vae pictures --out "$data/pictures" --minutes "$(minutes 17)" \
    --device "$device" --compiled $faces
$python -m training.draw --speech "$speech" --shelf "$data/clips" --clips 400 \
    --still 0.75 --human 0 --compiled
$python -m training.vae clips --start "$data/pictures/export" --out "$data/vae" \
    --minutes "$(minutes 5)" --device "$device" --shelf "$data/clips" --shelf-clips 140

fed="--speech $speech --vae $data/vae/export --front-end $data/audio/encoder.safetensors"
fed="$fed --device $device --shelf $data/clips --still 0.75 --human 0"
test -e "$data/reader.safetensors" ||
    $python -m training.reading latents --out "$data/reader.safetensors" --minutes 2.5 $fed \
        --shelf-clips 320
test -e "$data/judge.safetensors" ||
    $python -m training.reading pixels --out "$data/judge.safetensors" --minutes 5 \
        --shelf "$data/clips" --shelf-clips 320
# The reader pulls at the mouth once the picture stands, and then harder.
whole=$(minutes 36)
$python -m training.student flow --out "$data/student" --minutes "$whole" \
    --call-minutes "$(minutes 4.5)" $fed --shelf-clips 320
fed="$fed --reader $data/reader.safetensors"
$python -m training.student flow --out "$data/student" --minutes "$whole" \
    --call-minutes "$(minutes 10)" --reader-weight 8 $fed --shelf-clips 320
$python -m training.student flow --out "$data/student" --minutes "$whole" \
    --call-minutes "$(minutes 10.4)" --reader-weight 20 $fed --shelf-clips 400
# Heads that keep still, and a softer pull: what is foreseeable, drawn cleaner.
$python -m training.draw --speech "$speech" --shelf "$data/clips-still" --clips 319 \
    --still 1 --human 0 --compiled
fed="$fed --shelf $data/clips-still --still 1"
$python -m training.student flow --out "$data/student" --minutes "$whole" \
    --reader-weight 6 $fed --shelf-clips 319

mkdir -p models/tiny
rm -rf models/tiny/score models/tiny/vae
cp -r "$data/student/export" models/tiny/score
cp -r "$data/vae/export" models/tiny/vae
$python -m training.avatars --out models/tiny/avatars
$python -m training.demo_speech --speech "$speech" --out models/tiny/speech
grade() {
    name=$1
    shift
    $python -m training.evaluate --model tiny=models/tiny/score --vae models/tiny/vae \
        --speech "$speech" --judge "$data/judge.safetensors" --out "$data/evaluation/$name" "$@"
}
grade table --steps 1 8 --characters 4 --seconds 8
grade person --voices librivox --characters 4 --seconds 8
grade drift --characters 1 --seconds 2 --minutes 10
grade human --family human --characters 2 --seconds 4
