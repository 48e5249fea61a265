"""What every read-only file system must answer: one line per case, `name<TAB>answer`.

python3 posix.py ROOT [UID]   runs the cases in ROOT, the image of judges.rs, as UID if one is given.

An answer is a value or the name of an errno. Nothing is printed that one file system may answer
otherwise than another: inode numbers, times of access, sizes of directories, blocks.
"""
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import select
import socket
import stat
import struct
import subprocess
import sys
import tempfile

CASES = []
libc = ctypes.CDLL(None, use_errno=True)
A = "app/main.py"


def case(name, *args):
    """A case of its own, or one for each argument."""
    def add(function):
        for arg in args or [None]:
            title = name if arg is None else f"{name} {arg!r}"
            CASES.append((title, function if arg is None else lambda arg=arg: function(arg)))
        return function
    return add


def called(result):
    """The result of a call through ctypes."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class Opened:
    def __init__(self, path, flags=os.O_RDONLY):
        self.fd = os.open(path, flags)

    def __enter__(self):
        return self.fd

    def __exit__(self, *_):
        os.close(self.fd)


# --- open(2) -------------------------------------------------------------------------------------
FLAGS = ["O_RDONLY", "O_WRONLY", "O_RDWR", "O_TRUNC", "O_APPEND", "O_DIRECTORY", "O_NOFOLLOW", "O_PATH",
         "O_NONBLOCK", "O_NOATIME", "O_CLOEXEC", "O_SYNC",
         "O_CREAT", "O_CREAT|O_EXCL", "O_CREAT|O_WRONLY", "O_CREAT|O_DIRECTORY", "O_TMPFILE|O_RDWR", "O_PATH|O_NOFOLLOW",
         "O_PATH|O_DIRECTORY", "O_WRONLY|O_TRUNC", "O_RDWR|O_NOFOLLOW", "O_DIRECTORY|O_WRONLY", "O_DIRECTORY|O_NOFOLLOW"]
PLACES = [A, "app", "app/relative", "app/absolute", "app/dangling", "app/empty", "app/mode-000", "app/mode-755",
          "app/null", "app/disk", "srv/loop", "srv/to-dir", "app/missing", "app/missing/x", ".", "srv/to-dir/",
          "app/main.py/", "app/mode-400"]
for flags in FLAGS:
    @case(f"open {flags}", *PLACES)
    def _(path, flags=flags):
        bits = 0
        for flag in flags.split("|"):
            bits |= getattr(os, flag)
        with Opened(path, bits) as fd:
            return stat.filemode(os.fstat(fd).st_mode)


@case("open fifo", os.O_RDONLY | os.O_NONBLOCK, os.O_WRONLY | os.O_NONBLOCK, os.O_PATH)
def _(flags):
    with Opened("app/fifo", flags) as fd:
        return stat.filemode(os.fstat(fd).st_mode)


# --- lookups -------------------------------------------------------------------------------------
@case("stat", "app/main.py/x", "app/main.py/", "app/main.py/.", "app/missing", "app/missing/..", "app/../app/main.py",
      "app//main.py", "./app/./main.py", "n" * 255, "n" * 256, "app/" + "n" * 256, "a/" * 2047 + "a", "a/" * 2048, "srv/loop",
      "srv/loop/x", "srv/chain-39", "srv/chain-40", "srv/chain-41", "app/dangling", "app/dangling/", "",
      "app/relative", "app/relative/", "app/fifo/", "srv/to-dir/repo", "app/ two  spaces ", "app/new\nline", "app/back\\slash",
      b"app/caf\xe9.txt", "app/data-ünïcødé-漢字-1.txt", "app/DATA", "app/MAIN.PY", "etc/issue.net/text",
      "usr/share/doc/libcap2-bin/copyright", "/".join(["app"] + ["deep"] * 40))
def _(path):
    status = os.stat(path)
    return (oct(status.st_mode), status.st_uid, status.st_gid, 0 if stat.S_ISDIR(status.st_mode) else status.st_size)


@case("lstat of everything in", "app", "srv", "etc", ".")
def _(path):
    lines = []
    for name in sorted(os.listdir(os.fsencode(path))):
        s = os.lstat(os.path.join(os.fsencode(path), name))
        size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
        lines.append((name, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, size, s.st_mtime_ns,
                      s.st_rdev if stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode) else 0))
    return (len(lines), hashlib.sha256(repr(lines).encode()).hexdigest()[:16], lines[:3])


@case("readlink", "app/relative", "app/absolute", "app/dangling", "app/outside", A, "app", "srv/loop", "app/missing")
def _(path):
    return (os.readlink(path), os.lstat(path).st_size)


@case("readlink into 3 bytes")
def _():
    buf = ctypes.create_string_buffer(3)
    return (called(libc.readlink(b"app/absolute", buf, 3)), buf.raw)


@case("hard links")
def _():
    same = [os.stat(name) for name in (A, "app/hard.py", "app/sub/hard.py")]
    return (len({(s.st_dev, s.st_ino) for s in same}), [s.st_nlink for s in same])


@case("link counts of directories", "app", "app/sub", "srv", "usr", ".")
def _(path):
    return os.stat(path).st_nlink


@case("..", "app/sub", "srv/repo", "app")
def _(path):
    return os.path.samestat(os.stat(path + "/.."), os.stat(os.path.dirname(path) or "."))


# --- access(2), chdir(2), execve(2) --------------------------------------------------------------
@case("access", *[f"{name} {mode}" for name in
                  (A, "app/mode-000", "app/mode-111", "app/mode-400", "app/mode-640", "app/mode-4711", "app/owned",
                   "app/large-id", "app/shared", "app/sticky", "app/null", "app/fifo", "app/dangling", "srv/loop", "root",
                   "app/suid", "app/missing", "app/main.py/x") for mode in (0, 1, 2, 4, 5, 6, 7)])
def _(arg):
    name, mode = arg.split()
    called(libc.access(name.encode(), int(mode)))


@case("chdir", A, "app", "root", "app/missing", "srv/to-dir", "srv/loop", "app/mode-000")
def _(path):
    back = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path)
    finally:
        os.fchdir(back)
        os.close(back)


@case("execve", "usr/bin/true", A, "app/mode-755", "app/mode-640", "app/empty", "app", "app/missing", "srv/no-interpreter",
      "app/null", "app/fifo", "usr/bin/true/x")
def _(path):
    return subprocess.run(["x"], executable=os.path.join(".", path), capture_output=True).returncode


# --- reading -------------------------------------------------------------------------------------
@case("pread", (0, 10), (0, 0), (5, 1 << 20), (1 << 40, 10), ((1 << 63) - 11, 10), ((1 << 63) - 1, 1), (-1, 10))
def _(arg):
    offset, length = arg
    with Opened(A) as fd:
        return os.pread(fd, length, offset)


@case("pread around the end", -2, -1, 0, 1, 4096)
def _(delta):
    with Opened("usr/bin/true") as fd:
        size = os.fstat(fd).st_size
        return os.pread(fd, 100, size + delta)


@case("preadv")
def _():
    with Opened("usr/bin/true") as fd:
        parts = [bytearray(4), bytearray(0), bytearray(5000), bytearray(1)]
        return (os.preadv(fd, parts, 7), hashlib.sha256(b"".join(parts)).hexdigest())


@case("read", "app", "app/null", "app/empty", "app/sparse", "usr/bin/true", "srv/repo/.git/index")
def _(path):
    digest = hashlib.sha256()
    with Opened(path) as fd:
        while chunk := os.read(fd, 100_003):
            digest.update(chunk)
    return digest.hexdigest()


@case("write", os.O_RDONLY, os.O_PATH)
def _(flags):
    with Opened(A, flags) as fd:
        return os.write(fd, b"x")


@case("a path descriptor is not read")
def _():
    with Opened(A, os.O_PATH) as fd:
        return os.read(fd, 1)


@case("lseek", (0, os.SEEK_END), (-5, os.SEEK_END), (-5, os.SEEK_SET), (1 << 40, os.SEEK_SET), (0, 99),
      (0, os.SEEK_DATA), (0, os.SEEK_HOLE), (10, os.SEEK_DATA), (10, os.SEEK_HOLE), (1 << 40, os.SEEK_DATA), (1 << 40, os.SEEK_HOLE),
      (-1, os.SEEK_DATA), (-1, os.SEEK_HOLE))
def _(arg):
    with Opened(A) as fd:
        return os.lseek(fd, *arg)


@case("SEEK_DATA and SEEK_HOLE at the end", os.SEEK_DATA, os.SEEK_HOLE)
def _(whence):
    with Opened(A) as fd:
        return os.lseek(fd, os.fstat(fd).st_size, whence)


@case("what lies between data is zero", "app/sparse", "usr/bin/true", "app/empty")
def _(path):
    with Opened(path) as fd:
        size = os.fstat(fd).st_size
        content, at = bytearray(size), 0
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                break
            at = os.lseek(fd, start, os.SEEK_HOLE)
            content[start:at] = os.pread(fd, at - start, start)
        return hashlib.sha256(content).hexdigest()


@case("mmap", (mmap.MAP_SHARED, mmap.PROT_READ), (mmap.MAP_PRIVATE, mmap.PROT_READ),
      (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE), (mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
      (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
def _(arg):
    flags, protection = arg
    with Opened("usr/bin/true") as fd, mmap.mmap(fd, 0, flags=flags, prot=protection) as mapped:
        if protection & mmap.PROT_WRITE:
            mapped[100] ^= 0xFF
        return hashlib.sha256(mapped).hexdigest()


@case("the last page of a map is filled with zeros")
def _():
    with Opened(A) as fd:
        size = os.fstat(fd).st_size
        address = libc.mmap
        address.restype = ctypes.c_void_p
        address.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        at = address(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        return ctypes.string_at(at + size, 4096 - size) == bytes(4096 - size)


@case("sendfile")
def _():
    with Opened("usr/bin/true") as fd, tempfile.TemporaryFile() as out:
        sent = os.sendfile(out.fileno(), fd, 3, 10_000)
        out.seek(0)
        return (sent, hashlib.sha256(out.read()).hexdigest())


@case("splice")
def _():
    read, write = os.pipe()
    with Opened("usr/bin/true") as fd:
        moved = os.splice(fd, write, 4096, offset_src=1)
        return (moved, hashlib.sha256(os.read(read, 4096)).hexdigest())


@case("readahead, fadvise, flush", "readahead", "fadvise", "fsync", "fdatasync", "syncfs")
def _(what):
    with Opened("usr/bin/true") as fd:
        if what == "readahead":
            return called(libc.readahead(fd, ctypes.c_long(0), 4096))
        if what == "fadvise":
            return os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        return called(getattr(libc, what)(fd))


@case("locks", fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)
def _(operation):
    with Opened(A) as fd:
        return fcntl.flock(fd, operation | fcntl.LOCK_NB)


@case("record locks", fcntl.F_RDLCK, fcntl.F_WRLCK)
def _(kind):
    with Opened(A) as fd:
        fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi", kind, 0, 0, 10, 0))


@case("a second lock waits")
def _():
    with Opened(A) as one, Opened(A) as two:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


@case("poll")
def _():
    with Opened(A) as fd:
        poll = select.poll()
        poll.register(fd)
        return [event for _, event in poll.poll(0)]


# --- directories ---------------------------------------------------------------------------------
class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_uint16),
                ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
for function in (libc.readdir, libc.telldir, libc.rewinddir, libc.closedir):
    function.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Directory:
    def __init__(self, path):
        self.handle = libc.opendir(os.fsencode(path))
        if not self.handle:
            called(-1)

    def next(self):
        entry = libc.readdir(self.handle)
        return (entry.contents.name, entry.contents.type, entry.contents.ino) if entry else None

    def rest(self):
        entries = []
        while entry := self.next():
            entries.append(entry)
        return entries


@case("readdir: names and types", "app", "srv", ".", "usr/bin", A, "app/missing", "app/deep")
def _(path):
    entries = sorted((name, kind) for name, kind, _ in Directory(path).rest())
    return (len(entries), hashlib.sha256(repr(entries).encode()).hexdigest()[:16], entries[:4])


@case("readdir: inode numbers are stat's", "app", "srv", "usr/bin")
def _(path):
    path = os.fsencode(path)
    wrong = [name for name, _, inode in Directory(path).rest() if name != b".."
             and os.lstat(os.path.join(path, name)).st_ino != inode]
    return wrong


@case("telldir and seekdir", 0, 1, 2, 7, 100, 250)
def _(count):
    directory = Directory("app")
    for _ in range(count):
        directory.next()
    here = libc.telldir(directory.handle)
    first = directory.rest()
    libc.seekdir(directory.handle, here)
    second = directory.rest()
    libc.rewinddir(directory.handle)
    return (first == second, len(first), len(directory.rest()))


@case("getdents into a small buffer", 10, 24, 64)
def _(length):
    # The first entry here is ".", which needs 24 bytes.
    with Opened("srv", os.O_RDONLY | os.O_DIRECTORY) as fd:
        return called(libc.syscall(217, fd, ctypes.create_string_buffer(length), length)) > 0


@case("lseek of a directory to the start")
def _():
    with Opened("srv", os.O_RDONLY | os.O_DIRECTORY) as fd:
        names = [sorted(os.listdir(fd)), os.lseek(fd, 0, os.SEEK_SET), sorted(os.listdir(fd))]
        return names[0] == names[2]


# --- extended attributes -------------------------------------------------------------------------
@case("getxattr", *[f"{path} {name}" for path in ("app/noted", "app/ping", "app/sticky", A, "app", "app/relative")
                    for name in ("user.note", "user.empty", "user.dir", "user.none", "security.capability", "trusted.none",
                                 "security.none", "system.posix_acl_access", "system.posix_acl_default", "system.none",
                                 "user.", "security.", "system.", "none", "user." + "n" * 250, "user." + "n" * 251)])
def _(arg):
    path, name = arg.split(" ")
    return os.getxattr(path, name)


@case("lgetxattr", "app/relative user.note", "app/dangling security.capability", "app/fifo user.none", "app/null user.none")
def _(arg):
    path, name = arg.split()
    return os.getxattr(path, name, follow_symlinks=False)


@case("getxattr into so many bytes", 0, 1, 5, 6, 7)
def _(size):
    buf = ctypes.create_string_buffer(8)
    return called(libc.getxattr(b"app/noted", b"user.note", buf if size else None, size))


@case("listxattr", "app/noted", "app/ping", A, "app/sticky", "app/missing", "app/dangling", "app/fifo")
def _(path):
    return sorted(os.listxattr(path, follow_symlinks=path != "app/fifo"))


@case("listxattr into so many bytes", 0, 1, 9, 10, 100)
def _(size):
    buf = ctypes.create_string_buffer(128)
    return called(libc.listxattr(b"app/noted", buf if size else None, size))


# --- the file system -----------------------------------------------------------------------------
@case("statvfs", "app", A, "app/missing")
def _(path):
    found = os.statvfs(path)
    return (bool(found.f_flag & os.ST_RDONLY), found.f_namemax)


@case("pathconf", "PC_NAME_MAX", "PC_PATH_MAX", "PC_PIPE_BUF")
def _(name):
    return os.pathconf("app", name)


@case("name_to_handle_at")
def _():
    class Handle(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128)]
    handle, mount = Handle(128), ctypes.c_int()
    called(libc.name_to_handle_at(-100, A.encode(), ctypes.byref(handle), ctypes.byref(mount), 0))
    return "a handle"


@case("inotify")
def _():
    return called(libc.inotify_add_watch(called(libc.inotify_init1(0)), b"app", 0x100)) > 0


# --- every way to change something ---------------------------------------------------------------
MUTATIONS = {
    "mkdir": lambda path: os.mkdir(path),
    "rmdir": lambda path: os.rmdir(path),
    "unlink": lambda path: os.unlink(path),
    "rename from": lambda path: os.rename(path, "app/new"),
    "rename to": lambda path: os.rename("app/main.py", path),
    "rename to elsewhere": lambda path: os.rename(path, os.path.join(tempfile.gettempdir(), "clip-posix")),
    "link from": lambda path: os.link(path, "app/new"),
    "link to": lambda path: os.link("app/main.py", path),
    "symlink": lambda path: os.symlink("x", path),
    "mknod": lambda path: os.mknod(path, 0o600 | stat.S_IFREG),
    "mkfifo": lambda path: os.mkfifo(path),
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, 1, 1),
    "lchown": lambda path: os.lchown(path, 1, 1),
    "chown of nothing": lambda path: os.chown(path, -1, -1),
    "utimensat": lambda path: os.utime(path, (1, 1)),
    "utimensat now": lambda path: os.utime(path),
    "utimensat of a link": lambda path: os.utime(path, (1, 1), follow_symlinks=False),
    "truncate": lambda path: os.truncate(path, 0),
    "truncate longer": lambda path: os.truncate(path, 1 << 30),
    "setxattr": lambda path: os.setxattr(path, "user.note", b"x"),
    "setxattr of a capability": lambda path: os.setxattr(path, "security.capability", b"x"),
    "removexattr": lambda path: os.removexattr(path, "user.note"),
    "fchmod": lambda path: with_fd(path, lambda fd: os.fchmod(fd, 0o600)),
    "fchown": lambda path: with_fd(path, lambda fd: os.fchown(fd, 1, 1)),
    "futimens": lambda path: with_fd(path, lambda fd: os.utime(fd, (1, 1))),
    "ftruncate": lambda path: with_fd(path, lambda fd: os.ftruncate(fd, 0)),
    "fallocate": lambda path: with_fd(path, lambda fd: called(libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(9)))),
    "fsetxattr": lambda path: with_fd(path, lambda fd: os.setxattr(fd, "user.note", b"x")),
    "copy_file_range onto itself": lambda path: with_fd(path, lambda fd: os.copy_file_range(fd, fd, 1, 0, 5)),
    "bind a socket": lambda path: bind(path),
}


def with_fd(path, act):
    with Opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
        return act(fd)


def bind(path):
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)


for name, act in MUTATIONS.items():
    @case(name, A, "app", "app/missing", "app/missing/x", "app/main.py/x", "app/sub", "app/relative", "app/dangling",
          "srv/loop", "app/noted", "app/fifo", "app/null", "app/shared", "app/sticky", "app/owned", "app/" + "n" * 256, ".")
    def _(path, act=act):
        return act(path)


def main():
    os.chdir(sys.argv[1])
    os.umask(0o022)
    if len(sys.argv) > 2:
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[2]))
    for name, run in CASES:
        try:
            answer = repr(run())
        except OSError as error:
            answer = errno.errorcode.get(error.errno, str(error))
        except (ValueError, OverflowError) as error:
            answer = str(error)
        shown = name if len(name) < 100 else name[:60] + f"...({len(name)})"
        print(f"{shown}\t{answer}")


main()
