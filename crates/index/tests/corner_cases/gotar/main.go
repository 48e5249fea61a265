// Prints how Go's archive/tar reads each tar of a folder, one line a member, and puts the tars
// themselves, unpacked where they are packed, into another folder.
//
//	go run main.go FOLDER OUT
package main

import (
	"archive/tar"
	"bytes"
	"compress/bzip2"
	"encoding/base64"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// contentMax is the size up to which content is compared, too: some files are 60 GB of holes.
const contentMax = 1 << 20

func main() {
	files, err := filepath.Glob(filepath.Join(os.Args[1], "*.tar*"))
	must(err)
	for _, file := range files {
		stream := read(file)
		name := filepath.Base(file)
		must(os.WriteFile(filepath.Join(os.Args[2], name), stream, 0o600))
		fmt.Println("file", name)
		members(tar.NewReader(bytes.NewReader(stream)))
	}
}

func read(file string) []byte {
	packed, err := os.Open(file)
	must(err)
	defer packed.Close()
	var stream io.Reader = packed
	switch filepath.Ext(file) {
	case ".bz2":
		stream = bzip2.NewReader(packed)
	case ".base64":
		stream = base64.NewDecoder(base64.StdEncoding, packed)
	}
	all, err := io.ReadAll(stream)
	must(err)
	return all
}

func members(reader *tar.Reader) {
	for {
		header, err := reader.Next()
		if err == io.EOF {
			fmt.Println("end")
			return
		}
		if err == nil {
			err = member(header, reader)
		}
		if err != nil {
			fmt.Println("error", err)
			return
		}
	}
}

func member(h *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	line := fmt.Sprintf("%c %x %o %d:%d %d.%09d", h.Typeflag, name, h.Mode&0o7777, h.Uid, h.Gid,
		h.ModTime.Unix(), h.ModTime.Nanosecond())
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		sum := fnv.New64a()
		if h.Size <= contentMax {
			if _, err := io.Copy(sum, content); err != nil {
				return err
			}
		}
		line = strings.Replace(line, line[:1], "0", 1) + fmt.Sprintf(" %d %016x", h.Size, sum.Sum64())
	case tar.TypeSymlink:
		line += fmt.Sprintf(" %x", h.Linkname)
	case tar.TypeLink:
		line += fmt.Sprintf(" %x", strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"))
	case tar.TypeChar, tar.TypeBlock:
		line += fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
	case tar.TypeXGlobalHeader:
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			line += fmt.Sprintf(" %x=%x", name, h.PAXRecords[key])
		}
	}
	fmt.Println(line)
	return nil
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
