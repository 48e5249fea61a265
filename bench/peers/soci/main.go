// soci drives the public Go module of the SOCI snapshotter, whose programs are in a module that the Go module proxy does
// not have. Its C code needs zlib (Debian's zlib1g-dev):
//
//	soci convert LAYOUT NEW              indexes the image of an OCI layout as `soci convert` does, into another layout
//	soci describe NEW                    says what of the image in such a layout is indexed, and how, as JSON
//	soci serve ROOT SOCKET CONTAINERD    the snapshotter with its defaults, for the proxy_plugins of the containerd at the
//	                                     socket CONTAINERD, in whose store it keeps indexes; SIGTERM ends it
//	soci pull CONTAINERD IMAGE           has containerd pull an image through it, as `nerdctl pull` does
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/awslabs/soci-snapshotter/config"
	"github.com/awslabs/soci-snapshotter/fs"
	"github.com/awslabs/soci-snapshotter/fs/source"
	"github.com/awslabs/soci-snapshotter/metadata"
	"github.com/awslabs/soci-snapshotter/service"
	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/containerd/containerd"
	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/snapshotters"
	"github.com/containerd/containerd/remotes/docker"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "soci:", err)
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
		return serve(ctx, args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "pull":
		return pull(ctx, args[1], args[2])
	default:
		return fmt.Errorf("usage: soci convert LAYOUT NEW | soci describe NEW | soci serve ROOT SOCKET CONTAINERD | soci pull CONTAINERD IMAGE")
	}
}

func serve(ctx context.Context, root, socket, containerdSocket string) error {
	settings := config.NewConfig()
	// The default is a folder below /var/lib, whatever ROOT is. It makes no difference to the time of a start.
	settings.ContentStoreConfig = config.ContentStoreConfig{Type: config.ContainerdContentStoreType, ContainerdAddress: containerdSocket}
	files, err := fileStore(root)
	if err != nil {
		return err
	}
	snapshotter, err := service.NewSociSnapshotterService(ctx, root, &settings.ServiceConfig,
		service.WithFilesystemOptions(fs.WithMetadataStore(files)))
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(inNamespaceOf(ctx)))
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(listener)
}

// inNamespaceOf calls handlers in a namespace of containerd's, which old ones (1.6) do not name in their calls.
func inNamespaceOf(server context.Context) grpc.UnaryServerInterceptor {
	namespace, _ := namespaces.Namespace(server)
	return func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		return handle(namespaces.WithNamespace(ctx, namespace), request)
	}
}

// fileStore is where the snapshotter keeps what it knows of files; its program opens it like this.
func fileStore(root string) (metadata.Store, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	options := bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType, InitialMmapSize: 64 << 20}
	database, err := bolt.Open(filepath.Join(root, "metadata.db"), 0o600, &options)
	if err != nil {
		return nil, err
	}
	return func(layer *io.SectionReader, toc ztoc.TOC, options ...metadata.Option) (metadata.Reader, error) {
		return metadata.NewReader(database, layer, toc, options...)
	}, nil
}

func pull(ctx context.Context, socket, image string) error {
	client, err := containerd.New(socket)
	if err != nil {
		return err
	}
	defer client.Close()
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	// The image says itself where its index is.
	const noIndexGiven = ""
	_, err = client.Pull(ctx, image,
		containerd.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: hosts})),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter("peer"),
		containerd.WithImageHandlerWrapper(source.AppendDefaultLabelsHandlerWrapper(noIndexGiven, snapshotters.AppendInfoHandlerWrapper(image))))
	return err
}
