// layermaker compresses a tar as Go's tools do: `layermaker KIND <TAR >BLOB`.
//
//	gzip LEVEL          compress/gzip, as docker and containerd write layers (-2 is Huffman only, 0 stores)
//	zstd                klauspost's encoder, as BuildKit writes layers
//	estargz MIN         eStargz: a gzip member per chunk, or one for every MIN bytes of content
//	zstdchunked         zstd:chunked: a frame per chunk, the table of contents in a skippable frame
package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
)

// Small chunks make many of them out of little content.
const chunkSize = 64 << 10

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "layermaker:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	tar, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	switch {
	case len(args) == 2 && args[0] == "gzip":
		return gzipped(tar, args[1])
	case len(args) == 1 && args[0] == "zstd":
		return zstandard(tar)
	case len(args) == 2 && args[0] == "estargz":
		smallest, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return chunked(tar, estargz.WithMinChunkSize(smallest))
	case len(args) == 1 && args[0] == "zstdchunked":
		return chunked(tar, estargz.WithCompression(zstdChunked{
			&zstdchunked.Decompressor{},
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: map[string]string{}},
		}))
	}
	return fmt.Errorf("unknown kind %q", args)
}

type zstdChunked struct {
	*zstdchunked.Decompressor
	*zstdchunked.Compressor
}

func gzipped(tar []byte, level string) error {
	number, err := strconv.Atoi(level)
	if err != nil {
		return err
	}
	writer, err := gzip.NewWriterLevel(os.Stdout, number)
	if err != nil {
		return err
	}
	if _, err := writer.Write(tar); err != nil {
		return err
	}
	return writer.Close()
}

func zstandard(tar []byte) error {
	writer, err := zstd.NewWriter(os.Stdout)
	if err != nil {
		return err
	}
	if _, err := writer.Write(tar); err != nil {
		return err
	}
	return writer.Close()
}

func chunked(tar []byte, option estargz.Option) error {
	source := io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar)))
	blob, err := estargz.Build(source, estargz.WithChunkSize(chunkSize), option)
	if err != nil {
		return err
	}
	defer blob.Close()
	_, err = io.Copy(os.Stdout, blob)
	return err
}
