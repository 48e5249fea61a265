package main

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A user asks access(2) on a thread of its own that has given up being root for good.
type user struct {
	ask    chan []string
	answer chan []string
}

type identity struct {
	uid, gid uint32
	groups   []uint32
}

// Owner and group of most generated files (0:0, 1000:1000, 1000:2000), a member of the second group, a user whom only
// access control lists name, and nobody. The order is that of the letters in entry.Access.
var identities = []identity{
	{uid: 0, gid: 0},
	{uid: 1000, gid: 1000},
	{uid: 1234, gid: 1234, groups: []uint32{2000}},
	{uid: 3000, gid: 3000},
	{uid: 65534, gid: 65534},
}

func startUsers() []*user {
	var users []*user
	for _, who := range identities {
		started := &user{ask: make(chan []string), answer: make(chan []string)}
		ready := make(chan syscall.Errno)
		go started.run(who, ready)
		if errno := <-ready; errno != 0 {
			panic("cannot become another user: " + errno.Error())
		}
		users = append(users, started)
	}
	return users
}

// access tells for each path, not followed if it is a link, what the user may do.
func (u *user) access(paths []string) []string {
	u.ask <- paths
	return <-u.answer
}

func (u *user) run(who identity, ready chan<- syscall.Errno) {
	// Never unlocked: the thread is not fit for anything else afterwards.
	runtime.LockOSThread()
	ready <- become(who)
	for paths := range u.ask {
		granted := make([]string, len(paths))
		for i, path := range paths {
			granted[i] = may(path, unix.R_OK, "r") + may(path, unix.X_OK, "x")
		}
		u.answer <- granted
	}
}

// become changes this thread only; the functions of package syscall change the whole process.
func become(who identity) syscall.Errno {
	groups := unsafe.Pointer(unsafe.SliceData(who.groups))
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(who.groups)), uintptr(groups), 0); errno != 0 {
		return errno
	}
	gid, uid := uintptr(who.gid), uintptr(who.uid)
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return errno
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid)
	return errno
}

func may(path string, mode uint32, letter string) string {
	if unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return letter
	}
	return "-"
}
