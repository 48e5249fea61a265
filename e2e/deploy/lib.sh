# Which cluster is meant, and how to reach it. Sourced, never run.
# shellcheck disable=SC2034 # used by those who source it
#
#   KUBECONFIG not set    the cluster of e2e/cluster, which e2e/cluster/up starts
#   KUBECONFIG set        that cluster, with kubectl and helm from the PATH. Images for it are pushed to CLIP_REGISTRY
#                         (such as registry.example.com/team), from which its nodes must be able to pull;
#                         CLIP_REGISTRY_PLAIN_HTTP=yes when that registry has no TLS
# shellcheck shell=bash
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/../cluster/lib.sh"
ROOT=$(realpath "$HERE/../..")

if [ -n "${KUBECONFIG:-}" ]; then
	OWN_CLUSTER=
	IMAGES_AT=${CLIP_REGISTRY:-}
	[ -n "$IMAGES_AT" ] || die "KUBECONFIG is set, so $KUBECONFIG is the cluster that will be used; set CLIP_REGISTRY, too:
a registry to push images to and from which that cluster can pull, such as registry.example.com/team.
Or unset KUBECONFIG: then a cluster is started on this machine."
	for tool in kubectl helm; do
		command -v "$tool" >/dev/null || die "KUBECONFIG is set, and that cluster needs $tool on the PATH"
	done
	inside() { command "$@"; }
else
	OWN_CLUSTER=yes
	IMAGES_AT=$REGISTRY/demo
	inside() { "$HERE/kx" "$@"; }
fi

kubectl() { inside kubectl "$@"; }
helm() { inside helm "$@"; }

# push OCI-DIR NAME:TAG: put an image where the cluster's nodes find it, as $IMAGES_AT/NAME:TAG.
push() {
	local verify=()
	[ -z "$OWN_CLUSTER${CLIP_REGISTRY_PLAIN_HTTP:-}" ] || verify=(--dest-tls-verify=false)
	inside skopeo copy --quiet --insecure-policy "${verify[@]}" "oci:$1" "docker://$IMAGES_AT/$2" >&2
}
