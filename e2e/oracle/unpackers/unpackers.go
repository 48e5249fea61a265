package main

import (
	"context"
	"io"

	"github.com/apex/log"
	"github.com/apex/log/handlers/discard"
	containerd "github.com/containerd/containerd/v2/pkg/archive"
	"github.com/opencontainers/umoci/oci/layer"
	"github.com/sirupsen/logrus"
	storage "go.podman.io/storage/pkg/archive"
)

// An unpacker applies one uncompressed layer to the directory root.
type unpacker func(root string, layer io.Reader) error

// Each applies layer after layer to one directory, as a runtime without overlayfs does: what is hidden is removed.
var unpackers = map[string]unpacker{
	"containerd": func(root string, tar io.Reader) error {
		_, err := containerd.Apply(context.Background(), root, tar)
		return err
	},
	"umoci": func(root string, tar io.Reader) error {
		return layer.UnpackLayer(root, tar, &layer.UnpackOptions{OnDiskFormat: layer.DirRootfs{}})
	},
	// Podman, Buildah, CRI-O and Skopeo. ApplyLayer is the same with a look at the compression.
	"storage": func(root string, tar io.Reader) error {
		_, err := storage.UnpackLayer(root, tar, &storage.TarOptions{})
		return err
	},
}

// quieten silences the unpackers' warnings: what they skip shows in the tree.
func quieten() {
	log.SetHandler(discard.Default)
	logrus.SetOutput(io.Discard)
}
