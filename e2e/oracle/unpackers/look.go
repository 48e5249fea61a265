package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// An entry is everything that system calls show of one path. Texts that may hold any bytes are escaped.
type entry struct {
	// Path relative to the root, which is ".".
	Path string `json:"path"`
	// Kind is d, -, l, c, b, p or s, as ls(1) writes it.
	Kind string `json:"kind"`
	// Mode is the twelve permission bits.
	Mode  uint32    `json:"mode"`
	Owner [2]uint32 `json:"owner"`
	// Size in bytes; 0 for directories, whose size is the filesystem's own business.
	Size int64 `json:"size"`
	// Mtime is seconds and nanoseconds.
	Mtime [2]int64 `json:"mtime"`
	// Rdev is major and minor number of a device node.
	Rdev  [2]uint32 `json:"rdev"`
	Nlink uint64    `json:"nlink"`
	// Inode tells hard links of this tree apart.
	Inode uint64 `json:"inode"`
	// Target of a symbolic link.
	Target string `json:"target"`
	// Xattrs by name, values in hex.
	Xattrs map[string]string `json:"xattrs"`
	// Content is the digest of a regular file's bytes.
	Content string `json:"content"`
	// Access has two letters for each user in access.go: r and x, or - where it is denied.
	Access string `json:"access"`
}

// What is hashed whole. Of longer files (huge and sparse) the two ends of this size are.
const hashedWhole = 256 << 20

type looker struct {
	users  []*user
	buffer []byte
}

func newLooker() *looker {
	return &looker{users: startUsers(), buffer: make([]byte, 1<<18)}
}

// look walks the tree at root.
func (l *looker) look(root string) ([]entry, error) {
	entries, err := l.lookAt(nil, root, ".")
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(entries))
	for i := range entries {
		paths[i] = filepath.Join(root, entries[i].Path)
	}
	for _, user := range l.users {
		for i, granted := range user.access(paths) {
			// Linux grants nobody anything on a symbolic link itself; it is followed or not there.
			if entries[i].Kind != "l" {
				entries[i].Access += granted
			}
		}
	}
	for i := range entries {
		entries[i].Path = escape(entries[i].Path)
	}
	return entries, nil
}

func (l *looker) lookAt(entries []entry, root, path string) ([]entry, error) {
	full := filepath.Join(root, path)
	found, err := l.entry(full, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", escape(full), err)
	}
	entries = append(entries, found)
	if found.Kind != "d" {
		return entries, nil
	}
	children, err := os.ReadDir(full)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		if entries, err = l.lookAt(entries, root, filepath.Join(path, child.Name())); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

func (l *looker) entry(full, path string) (entry, error) {
	var stat unix.Stat_t
	if err := unix.Lstat(full, &stat); err != nil {
		return entry{}, fmt.Errorf("lstat: %w", err)
	}
	found := entry{
		Path:  path,
		Mode:  stat.Mode & 0o7777,
		Owner: [2]uint32{stat.Uid, stat.Gid},
		Mtime: [2]int64{stat.Mtim.Sec, stat.Mtim.Nsec},
		Nlink: stat.Nlink,
		Inode: stat.Ino,
		Size:  stat.Size,
	}
	var err error
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		found.Kind, found.Size = "d", 0
	case unix.S_IFREG:
		found.Kind = "-"
		found.Content, err = l.digest(full, stat.Size)
	case unix.S_IFLNK:
		found.Kind = "l"
		found.Target, err = os.Readlink(full)
		found.Target = escape(found.Target)
	case unix.S_IFCHR:
		found.Kind, found.Rdev = "c", [2]uint32{unix.Major(stat.Rdev), unix.Minor(stat.Rdev)}
	case unix.S_IFBLK:
		found.Kind, found.Rdev = "b", [2]uint32{unix.Major(stat.Rdev), unix.Minor(stat.Rdev)}
	case unix.S_IFIFO:
		found.Kind = "p"
	default:
		found.Kind = "s"
	}
	if err != nil {
		return entry{}, err
	}
	found.Xattrs, err = l.xattrs(full)
	return found, err
}

func (l *looker) digest(path string, size int64) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	parts := []io.Reader{file}
	if size > hashedWhole {
		end := io.NewSectionReader(file, size-hashedWhole, hashedWhole)
		parts = []io.Reader{io.NewSectionReader(file, 0, hashedWhole), end}
	}
	for _, part := range parts {
		if _, err := io.CopyBuffer(struct{ io.Writer }{hash}, struct{ io.Reader }{part}, l.buffer); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func (l *looker) xattrs(path string) (map[string]string, error) {
	length, err := unix.Llistxattr(path, l.buffer)
	if err == unix.ENOTSUP {
		return map[string]string{}, nil // A filesystem may say for all files at once that it has none.
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	names := strings.FieldsFunc(string(l.buffer[:length]), func(r rune) bool { return r == 0 })
	found := make(map[string]string, len(names))
	for _, name := range names {
		length, err := unix.Lgetxattr(path, name, l.buffer)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s: %w", escape(name), err)
		}
		found[escape(name)] = hex.EncodeToString(l.buffer[:length])
	}
	return found, nil
}

// escape writes bytes that are no printable ASCII, and the backslash, as \xHH: JSON holds no other bytes.
func escape(text string) string {
	var out strings.Builder
	for _, b := range []byte(text) {
		if b < ' ' || b > '~' || b == '\\' {
			fmt.Fprintf(&out, "\\x%02x", b)
		} else {
			out.WriteByte(b)
		}
	}
	return out.String()
}
