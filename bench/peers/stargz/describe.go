package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/stargz-snapshotter/estargz"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// sizes sums up the layers of an image, in bytes.
type sizes struct {
	LayerBytes int64 `json:"layerBytes"`
	// The tables of contents at the ends of the layers, as they are stored: in gzip.
	TocBytes int64 `json:"tocBytes"`
}

func describe(layout string) error {
	index, err := readIndex(layout)
	if err != nil {
		return err
	}
	var image ocispec.Manifest
	text, err := os.ReadFile(blobPath(layout, index.Manifests[0]))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &image); err != nil {
		return err
	}
	var sum sizes
	for _, layer := range image.Layers {
		toc, err := tocBytes(blobPath(layout, layer), layer.Size)
		if err != nil {
			return fmt.Errorf("layer %s: %w", layer.Digest, err)
		}
		sum.LayerBytes += layer.Size
		sum.TocBytes += toc
	}
	return json.NewEncoder(os.Stdout).Encode(sum)
}

func tocBytes(file string, size int64) (int64, error) {
	layer, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer layer.Close()
	start, footer, err := estargz.OpenFooter(io.NewSectionReader(layer, 0, size))
	return size - footer - start, err
}

func blobPath(layout string, blob ocispec.Descriptor) string {
	return filepath.Join(layout, "blobs", blob.Digest.Algorithm().String(), blob.Digest.Encoded())
}
