package main

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/awslabs/soci-snapshotter/soci"
	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/awslabs/soci-snapshotter/ztoc/compression"
	"github.com/containerd/containerd/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// SOCI's default; it does not export it.
const minLayerSize = 10 << 20

// description sums up an image and the ztocs of its layers. Sizes are in bytes.
type description struct {
	Layers  int `json:"layers"`
	Indexed int `json:"indexed"`
	// Those of the others that are too small to be worth it; the rest is in formats that SOCI does not index.
	Small     int   `json:"small"`
	ZtocBytes int64 `json:"ztocBytes"`
	// How many spans there are, and how much they are together when they are decoded.
	Spans        int64 `json:"spans"`
	DecodedBytes int64 `json:"decodedBytes"`
	// Of any span, what must be fetched and decoded to read a byte of it.
	LongestFetched int64 `json:"longestFetched"`
	LongestDecoded int64 `json:"longestDecoded"`
}

func describe(layout string) error {
	image, ztocs, err := readConverted(layout)
	if err != nil {
		return err
	}
	sum := description{Layers: len(image.Layers)}
	for _, layer := range image.Layers {
		ztoc, indexed := ztocs[layer.Digest.String()]
		switch {
		case indexed:
			err = sum.add(blobPath(layout, ztoc))
		case layer.Size < minLayerSize:
			sum.Small++
		}
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(sum)
}

// readConverted finds the image's manifest, and the ztocs by the digests of their layers.
func readConverted(layout string) (image ocispec.Manifest, ztocs map[string]ocispec.Descriptor, err error) {
	manifests, err := manifestsOf(layout)
	if err != nil {
		return image, nil, err
	}
	ztocs = map[string]ocispec.Descriptor{}
	for _, manifest := range manifests {
		var read ocispec.Manifest
		if err := readJSON(blobPath(layout, manifest), &read); err != nil {
			return image, nil, err
		}
		if manifest.ArtifactType != soci.SociIndexArtifactTypeV2 {
			image = read
			continue
		}
		for _, ztoc := range read.Layers {
			ztocs[ztoc.Annotations[soci.IndexAnnotationImageLayerDigest]] = ztoc
		}
	}
	return image, ztocs, nil
}

// manifestsOf lists those of the image and of its SOCI index, if it has one.
func manifestsOf(layout string) ([]ocispec.Descriptor, error) {
	top, err := readIndex(layout)
	if err != nil || !images.IsIndexType(top.Manifests[0].MediaType) {
		return top.Manifests, err
	}
	var converted ocispec.Index
	err = readJSON(blobPath(layout, top.Manifests[0]), &converted)
	return converted.Manifests, err
}

func blobPath(layout string, blob ocispec.Descriptor) string {
	return filepath.Join(layout, "blobs", blob.Digest.Algorithm().String(), blob.Digest.Encoded())
}

func (d *description) add(file string) error {
	opened, err := os.Open(file)
	if err != nil {
		return err
	}
	defer opened.Close()
	stat, err := opened.Stat()
	if err != nil {
		return err
	}
	table, err := ztoc.Unmarshal(opened)
	if err != nil {
		return err
	}
	points, err := compression.NewZinfo(table.CompressionAlgorithm, table.Checkpoints)
	if err != nil {
		return err
	}
	defer points.Close()
	d.Indexed++
	d.ZtocBytes += stat.Size()
	d.Spans += int64(points.MaxSpanID()) + 1
	d.DecodedBytes += int64(table.UncompressedArchiveSize)
	for span := compression.SpanID(0); span <= points.MaxSpanID(); span++ {
		fetched := points.EndCompressedOffset(span, table.CompressedArchiveSize) - points.StartCompressedOffset(span)
		decoded := points.EndUncompressedOffset(span, table.UncompressedArchiveSize) - points.StartUncompressedOffset(span)
		d.LongestFetched = max(d.LongestFetched, int64(fetched))
		d.LongestDecoded = max(d.LongestDecoded, int64(decoded))
	}
	return nil
}
