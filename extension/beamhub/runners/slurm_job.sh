#!/bin/sh
# What Slurm runs on a node, the same for every job: slurm_job.sh PYTHON FOLDER ATTEMPT OPTION…
# All of it is the facility's own; what people chose for the job stands in its folder and passes no shell.
python=$1
folder=$2
[ -e "$folder/.attempt-$3" ] || exit 1 # it was given up, and the folder is another attempt's by now
: > "$folder/.started" || exit 1
shift 3
exec "$python" -m beamhub.node "$folder" "$@"
