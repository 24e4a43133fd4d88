#!/bin/sh
# What Slurm runs on a node, the same for every job: slurm_job.sh PYTHON FOLDER OPTION…
# All of it is the facility's own; what people chose for the job stands in its folder and passes no shell.
: > "$2/.started" || exit 1
python=$1
shift
exec "$python" -m beamhub.node "$@"
