#!/usr/bin/env bash
# What the tests need beyond Python: installed by apt-get where that may be, else named in one sentence.
set -euo pipefail

missing=()
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
    missing+=(chromium)
command -v rsync >/dev/null || missing+=(rsync)
command -v dials.import >/dev/null || missing+=(dials)
command -v bwrap >/dev/null || missing+=(bubblewrap)
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
[ -x /usr/sbin/slurmctld ] && [ -x /usr/sbin/slurmd ] && command -v sbatch >/dev/null && [ -x /usr/sbin/munged ] ||
    missing+=(slurmctld slurmd slurm-client munge)
compgen -G '/usr/share/fonts/truetype/dejavu/*.ttf' >/dev/null || missing+=(fonts-dejavu-core)
compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || missing+=(faketime)
command -v systemd-analyze >/dev/null || missing+=(systemd)
command -v strace >/dev/null || missing+=(strace)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
    apt=(apt-get)
elif sudo --non-interactive true 2>/dev/null; then
    apt=(sudo --non-interactive apt-get)
else
    echo "Some tests will be skipped: ask your administrator for 'apt-get install ${missing[*]}'." >&2
    exit 0
fi
echo "Installing ${missing[*]}"
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { "${apt[@]}" update && "${apt[@]}" install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -5 "$log" >&2
    echo "Some tests will be skipped: '${apt[*]} install ${missing[*]}' failed; its log is $log." >&2
fi
