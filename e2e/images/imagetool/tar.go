package main

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// inode identifies a file, so that its second name becomes a hard link.
type inode struct{ dev, ino uint64 }

// writeTar writes dir as a layer: PAX headers, names sorted within each directory, xattrs as
// SCHILY.xattr.*, hard links by inode, overlay whiteouts (device 0:0) as .wh.NAME and opaque
// directories as .wh..wh..opq. Times are whole seconds, as docker writes them, unless nanoseconds is set.
func writeTar(out io.Writer, dir string, nanoseconds bool) error {
	tw := tar.NewWriter(out)
	links := map[inode]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		return writeEntry(tw, path, name, links, nanoseconds)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func writeEntry(tw *tar.Writer, path, name string, links map[inode]string, nanoseconds bool) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	modified := layerTime(info.ModTime(), nanoseconds)
	if info.Mode()&os.ModeSocket != 0 {
		return nil // sockets have no place in a layer
	}
	if info.Mode()&os.ModeCharDevice != 0 && stat.Rdev == 0 {
		return tw.WriteHeader(marker(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), modified))
	}
	target := ""
	if info.Mode()&os.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	header.Name = name
	if info.IsDir() {
		header.Name += "/"
	}
	header.Format = tar.FormatPAX
	header.Uname, header.Gname = "", ""
	header.ModTime, header.AccessTime, header.ChangeTime = modified, time.Time{}, time.Time{}
	opaque, err := addXattrs(header, path)
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() && stat.Nlink > 1 {
		id := inode{uint64(stat.Dev), stat.Ino}
		if first, seen := links[id]; seen {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
		} else {
			links[id] = name
		}
	}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	if header.Typeflag == tar.TypeReg {
		if err := copyFile(tw, path); err != nil {
			return err
		}
	}
	if opaque {
		return tw.WriteHeader(marker(name+"/.wh..wh..opq", modified))
	}
	return nil
}

// layerTime hides when the image was built: nothing is newer than epoch.
func layerTime(t time.Time, nanoseconds bool) time.Time {
	if t.After(epoch) {
		t = epoch
	}
	if nanoseconds {
		return t
	}
	return t.Truncate(time.Second)
}

func marker(name string, modified time.Time) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeReg, ModTime: modified, Format: tar.FormatPAX}
}

// addXattrs copies the extended attributes and tells whether overlayfs marked the directory opaque.
func addXattrs(header *tar.Header, path string) (opaque bool, err error) {
	if header.Typeflag == tar.TypeSymlink {
		return false, nil
	}
	buffer := make([]byte, 64<<10) // the kernel's limit for a list of names, and for a value
	n, err := syscall.Listxattr(path, buffer)
	if err != nil || n == 0 {
		return false, err
	}
	value := make([]byte, 64<<10)
	for _, name := range bytes.Split(bytes.TrimRight(buffer[:n], "\x00"), []byte{0}) {
		key := string(name)
		size, err := syscall.Getxattr(path, key, value)
		if err != nil {
			return false, err
		}
		if strings.HasPrefix(key, "trusted.overlay.") {
			opaque = opaque || key == "trusted.overlay.opaque" && string(value[:size]) == "y"
			continue
		}
		if header.PAXRecords == nil {
			header.PAXRecords = map[string]string{}
		}
		header.PAXRecords["SCHILY.xattr."+key] = string(value[:size])
	}
	return opaque, nil
}

func copyFile(out io.Writer, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(out, file)
	return err
}
