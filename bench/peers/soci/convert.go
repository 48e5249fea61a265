package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/awslabs/soci-snapshotter/soci"
	"github.com/awslabs/soci-snapshotter/soci/store"
	"github.com/containerd/containerd/content/local"
	"github.com/containerd/containerd/images"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/oci"
)

// convert links to the blobs of the old layout from the new one. An image without a layer that SOCI indexes stays as it is.
func convert(ctx context.Context, layout, into string) error {
	image, err := readIndex(layout)
	if err != nil {
		return err
	}
	if err := linkBlobs(layout, into); err != nil {
		return err
	}
	read, err := local.NewStore(into)
	if err != nil {
		return err
	}
	written, err := oci.New(into)
	if err != nil {
		return err
	}
	database := filepath.Join(into, "artifacts.db")
	defer os.Remove(database)
	artifacts, err := soci.NewDB(database)
	if err != nil {
		return err
	}
	builder, err := soci.NewIndexBuilder(read, &store.SociStore{Store: written}, soci.WithArtifactsDb(artifacts))
	if err != nil {
		return err
	}
	converted, err := builder.Convert(ctx, images.Image{Target: image.Manifests[0]})
	if errors.Is(err, soci.ErrEmptyIndex) {
		return writeIndex(into, image.Manifests[0])
	}
	if err != nil {
		return err
	}
	return writeIndex(into, *converted)
}

func linkBlobs(layout, into string) error {
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		return err
	}
	there := filepath.Join(into, "blobs/sha256")
	if err := os.MkdirAll(there, 0o755); err != nil {
		return err
	}
	for _, blob := range blobs {
		if err := os.Symlink(blob, filepath.Join(there, filepath.Base(blob))); err != nil {
			return err
		}
	}
	return nil
}

func readIndex(layout string) (index ocispec.Index, err error) {
	err = readJSON(filepath.Join(layout, ocispec.ImageIndexFile), &index)
	return index, err
}

func writeIndex(layout string, image ocispec.Descriptor) error {
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{image}})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(layout, ocispec.ImageIndexFile), index, 0o644)
}

func readJSON(file string, into any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
