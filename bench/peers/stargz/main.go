// stargz drives the public Go module of stargz-snapshotter, whose programs the Go module proxy does not have, as they
// live in a module without versions:
//
//	stargz convert LAYOUT NEW              rewrites the image of an OCI layout as eStargz, into another layout
//	stargz describe NEW                    says how large the layers of such a layout and their TOCs are, as JSON
//	stargz serve ROOT SOCKET CONTAINERD    the snapshotter with its defaults, for the proxy_plugins of the containerd at the
//	                                       socket CONTAINERD, which it does not use; SIGTERM ends it
//	stargz pull CONTAINERD IMAGE           has containerd pull an image through it, as `ctr-remote images rpull` does
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/containerd/stargz-snapshotter/fs/source"
	"github.com/containerd/stargz-snapshotter/nativeconverter/estargz"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// What `ctr-remote images rpull` lets the snapshotter fetch ahead of a layer, if the image says no better.
const prefetchSize = 10 << 20

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx := namespaces.WithNamespace(context.Background(), "default")
	switch {
	case len(args) == 3 && args[0] == "convert":
		return convert(ctx, args[1], args[2])
	case len(args) == 2 && args[0] == "describe":
		return describe(args[1])
	case len(args) == 4 && args[0] == "serve":
		return serve(ctx, args[1], args[2])
	case len(args) == 3 && args[0] == "pull":
		return pull(ctx, args[1], args[2])
	default:
		return fmt.Errorf("usage: stargz convert LAYOUT NEW | stargz describe NEW | stargz serve ROOT SOCKET CONTAINERD | stargz pull CONTAINERD IMAGE")
	}
}

func serve(ctx context.Context, root, socket string) error {
	snapshotter, err := service.NewStargzSnapshotterService(ctx, root, &service.Config{})
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(listener)
}

func pull(ctx context.Context, socket, image string) error {
	containerd, err := client.New(socket)
	if err != nil {
		return err
	}
	defer containerd.Close()
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	_, err = containerd.Pull(ctx, image,
		client.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: hosts})),
		client.WithPullUnpack,
		client.WithPullSnapshotter("peer"),
		client.WithImageHandlerWrapper(source.AppendDefaultLabelsHandlerWrapper(image, prefetchSize)))
	return err
}

// convert lends the blobs of the old layout to the new one while it works; only what the new image needs stays.
func convert(ctx context.Context, layout, into string) error {
	index, err := readIndex(layout)
	if err != nil {
		return err
	}
	lent, err := lendBlobs(layout, into)
	if err != nil {
		return err
	}
	store, err := local.NewLabeledStore(into, &labels{of: map[digest.Digest]map[string]string{}})
	if err != nil {
		return err
	}
	image := converter.DefaultIndexConvertFunc(estargz.LayerConvertFunc(), true, platforms.All)
	converted, err := image(ctx, store, index.Manifests[0])
	if err != nil {
		return err
	}
	for _, blob := range lent {
		if err := os.Remove(blob); err != nil {
			return err
		}
	}
	return writeIndex(into, *converted)
}

func readIndex(layout string) (index ocispec.Index, err error) {
	text, err := os.ReadFile(filepath.Join(layout, ocispec.ImageIndexFile))
	if err == nil {
		err = json.Unmarshal(text, &index)
	}
	return index, err
}

func lendBlobs(layout, into string) (lent []string, err error) {
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		return nil, err
	}
	there := filepath.Join(into, "blobs/sha256")
	if err := os.MkdirAll(there, 0o755); err != nil {
		return nil, err
	}
	for _, blob := range blobs {
		link := filepath.Join(there, filepath.Base(blob))
		if err := os.Symlink(blob, link); err != nil {
			return nil, err
		}
		lent = append(lent, link)
	}
	return lent, nil
}

func writeIndex(layout string, manifest ocispec.Descriptor) error {
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(layout, ocispec.ImageLayoutFile), version, 0o644); err != nil {
		return err
	}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{manifest}})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(layout, ocispec.ImageIndexFile), index, 0o644)
}

// labels are kept in memory: they are of use only while the image is converted.
type labels struct {
	mutex sync.Mutex
	of    map[digest.Digest]map[string]string
}

func (l *labels) Get(blob digest.Digest) (map[string]string, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.of[blob], nil
}

func (l *labels) Set(blob digest.Digest, set map[string]string) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.of[blob] = set
	return nil
}

func (l *labels) Update(blob digest.Digest, changed map[string]string) (map[string]string, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	updated := map[string]string{}
	for name, value := range l.of[blob] {
		updated[name] = value
	}
	for name, value := range changed {
		updated[name] = value
	}
	l.of[blob] = updated
	return updated, nil
}
