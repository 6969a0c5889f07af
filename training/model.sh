#!/bin/sh
# Build the shipped model from nothing; `make model` calls it. Every step may be cut and called
# again: it goes on where it was. The minutes are those that the shipped weights took on one core
# of a server CPU, which other work shared; seeds are fixed in the scripts. More minutes are better.
#
#   DATA    where everything grows                                          build/training
#   OUT     where the model goes                                            models/tiny
#   DEVICE  cpu or cuda                                                     cpu
#   SCALE   of all minutes: 2 trains twice as long; below 1, of all data too   1
set -eu
cd "$(dirname "$0")/.."
data=${DATA:-build/training}
out=${OUT:-models/tiny}
device=${DEVICE:-cpu}
scale=${SCALE:-1}
python=.venv/bin/python

# What is learned from lives for seconds: glibc had better keep the pages than ask for new ones.
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
export MALLOC_TOP_PAD_=268435456

minutes() { awk "BEGIN { print $1 * $scale }"; }
fewer() { awk "BEGIN { s = $scale < 1 ? $scale : 1; n = $1 * s; print n < $2 ? $2 : int(n) }"; }
hours() { awk "BEGIN { s = $scale < 1 ? $scale : 1; h = 2.5 * s; print h < 0.05 ? 0.05 : h }"; }

speech="$data/speech"
$python -m training.data.speech --out "$speech" --hours "$(hours)"
$python -m training.audio --speech "$speech" --out "$data/audio" --steps "$(fewer 3000 20)"

# What is drawn is kept: on a CPU drawing costs more than learning. The other family costs ten
# times as much to draw, so pictures alone show it.
faces="--shelf $data/faces --shelf-clips $(fewer 1200 16)"
$python -m training.vae pictures --out "$data/pictures" --minutes "$(minutes 17)" \
    --device "$device" --compiled $faces
first=$(fewer 400 8)
$python -m training.draw --speech "$speech" --shelf "$data/clips" --clips "$first" \
    --still 0.75 --human 0 --compiled
$python -m training.vae clips --start "$data/pictures/export" --out "$data/vae" \
    --minutes "$(minutes 5)" --device "$device" --shelf "$data/clips" \
    --shelf-clips "$(fewer 140 8)"

fed="--speech $speech --vae $data/vae/export --front-end $data/audio/encoder.safetensors"
fed="$fed --device $device --still 0.75 --human 0"
clips="--shelf $data/clips --shelf-clips"
test -e "$data/reader.safetensors" ||
    $python -m training.reading latents --out "$data/reader.safetensors" \
        --minutes "$(minutes 2.5)" $fed $clips "$first"
test -e "$data/judge.safetensors" ||
    $python -m training.reading pixels --out "$data/judge.safetensors" --minutes "$(minutes 5)" \
        $clips "$first"
pull="--reader $data/reader.safetensors --reader-weight"

# A first student, from nothing. The reader pulls at the mouth once the picture stands, and then
# harder; in the end heads that keep still, and a softer pull: what is foreseeable, drawn cleaner.
whole=$(minutes 36)
begun="--out $data/begun --minutes $whole"
$python -m training.student flow $begun --call-minutes "$(minutes 4.5)" $fed $clips "$first"
$python -m training.student flow $begun --call-minutes "$(minutes 10)" $fed $clips "$first" $pull 8
$python -m training.student flow $begun --call-minutes "$(minutes 10.4)" $fed $clips "$first" \
    $pull 20
still=$(fewer 319 8)
$python -m training.draw --speech "$speech" --shelf "$data/clips-still" --clips "$still" \
    --still 1 --human 0 --compiled
$python -m training.student flow $begun $fed --still 1 --shelf "$data/clips-still" \
    --shelf-clips "$still" $pull 6

# The teacher goes on from it and sees whole clips; the student goes on from the teacher, as in
# asymmetric distillation, on heads that keep still and ever more often on contexts of its own.
$python -m training.teacher --out "$data/teacher" --start "$data/begun/export" \
    --minutes "$(minutes 4)" --save-minutes 12 $fed $clips "$first" $pull 8
more=$(fewer 1080 8)
$python -m training.draw --speech "$speech" --shelf "$data/clips-still" --first "$still" \
    --clips "$more" --still 1 --human 0 --compiled
$python -m training.student flow --out "$data/student" --start "$data/teacher/export" \
    --minutes "$(minutes 18)" --save-minutes 12 --own-contexts 0 0.3 $fed --still 1 \
    --shelf "$data/clips-still" --shelf-clips $((still + more)) $pull 8

mkdir -p "$out"
rm -rf "$out/score" "$out/vae"
cp -r "$data/student/export" "$out/score"
cp -r "$data/vae/export" "$out/vae"
$python -m training.avatars --out "$out/avatars"
$python -m training.demo_speech --speech "$speech" --out "$out/speech"
grade() {
    name=$1
    shift
    $python -m training.evaluate --model tiny="$out/score" --vae "$out/vae" \
        --speech "$speech" --judge "$data/judge.safetensors" --out "$data/evaluation/$name" "$@"
}
seconds=$(fewer 8 2)
grade table --steps 1 4 8 --characters 4 --seconds "$seconds" --teacher "$data/teacher/export"
grade person --voices librivox --characters 4 --seconds "$seconds"
grade drift --characters 1 --seconds 2 --minutes "$(minutes 10)"
grade human --family human --characters 2 --seconds "$(fewer 4 2)"
