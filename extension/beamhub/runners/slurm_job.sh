#!/bin/sh
# What Slurm runs on a node, the same for every job: slurm_job.sh PYTHON KIB FOLDER OPTION…
# All of it is the facility's own; what people chose for the job stands in its folder and passes no shell.
: > "$3/.started" || exit 1
ulimit -c 0
ulimit -d "$2" # of each process, as a first line: Slurm watches what they use together
python=$1
shift 2
exec "$python" -m beamhub.node "$@"
