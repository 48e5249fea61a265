# Names and small functions that every script of this folder shares. Sourced, never run.
# shellcheck shell=bash disable=SC2034

export LC_ALL=C.UTF-8
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${CLIP_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/clip}
# Everything a running cluster keeps on disk. Two clusters need two folders and nothing else.
RUN=$(realpath -m "${CLIP_CLUSTER_DIR:-$HERE/run}")

CSI_SANITY=v5.6.0   # of github.com/kubernetes-csi/csi-test/v5
JUDGE_SUITE=trixie  # Debian suite whose erofs-utils read 512-byte blocks (>= 1.8)

REGISTRY=10.99.0.1:5000       # open, plain HTTP
AUTH_REGISTRY=10.99.0.1:5001  # the same images behind user clip, password s3cret

# The folder of built tools. Its name changes with everything the tools are built from.
TOOLS=$CACHE/tools/$({ cat "$HERE"/kubebox/{go.mod,go.sum,main.go}; echo "$CSI_SANITY $JUDGE_SUITE"; } | sha256sum | cut -c1-16)

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }

# step TEXT COMMAND...: run COMMAND, then print how long it took.
step() {
	local text=$1 from=$EPOCHREALTIME
	shift
	"$@"
	awk -v a="$from" -v b="$EPOCHREALTIME" -v t="$text" 'BEGIN { printf "%8.1f s  %s\n", b - a, t }' >&2
}

# node_dir N: state of node N. node_cgroup N: its cgroup, named after the state folder so that clusters do not meet.
node_dir() { echo "$RUN/node$1"; }
node_cgroup() { echo "clip-$(printf %s "$RUN" | sha256sum | cut -c1-8)-node$1"; }

# node_pid N: the process (unshare) that holds node N's namespaces; fails when the node is not running.
node_pid() {
	local pid
	pid=$(cat "$(node_dir "$1")/pid" 2>/dev/null) || return 1
	tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$HERE/node/init $RUN $1 " || return 1
	echo "$pid"
}

# cgroup_roots NAME: the directories that make up cgroup NAME (one per controller with v1, one with v2).
cgroup_roots() {
	if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
		echo "/sys/fs/cgroup/$1"
	else
		find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d -printf "%p/$1\n"
	fi
}

# cgroup_remove NAME: remove the cgroup and all below it; waits up to 10 s for its processes to be gone.
cgroup_remove() {
	local dir
	for dir in $(cgroup_roots "$1"); do
		for _ in {1..100}; do
			[ -d "$dir" ] || break
			find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
		done
		[ ! -d "$dir" ] || say "cgroup $dir is still in use"
	done
}

# node_start N: run node N in the background, in namespaces of its own.
node_start() {
	local dir
	dir=$(node_dir "$1")
	rm -rf "$dir"
	mkdir -p "$dir"/{log,cfg}
	setsid "$HERE/node/hold" "$1" >"$dir/log/init.log" 2>&1 </dev/null 9>&- &
	until [ -s "$dir/pid" ]; do sleep 0.01; done
}

# node_await N: return when node N is Ready; show the end of its log when it died.
node_await() {
	local dir
	dir=$(node_dir "$1")
	until [ -e "$dir/ready" ]; do
		node_pid "$1" >/dev/null || { tail -n 20 "$dir/log/init.log" >&2; die "node $1 died while starting; logs are in $dir/log"; }
		[ "$SECONDS" -lt 120 ] || die "node $1 is not Ready after two minutes; logs are in $dir/log"
		sleep 0.1
	done
}

# debian_mirror: the address of the Debian mirror this machine's apt uses, in whatever form it is configured.
debian_mirror() {
	local uri
	uri=$(apt-get download --print-uris base-files 2>/dev/null) ||
		{ apt-get -qq update && uri=$(apt-get download --print-uris base-files); } ||
		die "apt knows no Debian mirror: check /etc/apt/sources.list*"
	sed -n "s#^'\(.*\)/pool/main/.*#\1#p;q" <<<"$uri"
}
