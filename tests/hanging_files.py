"""A file system that hangs when it is told to, as one on a network does when its server is gone.

`python hanging_files.py FOLDER PID-FILE COMMAND…` mounts it at FOLDER, as SSHFS would, and becomes the
command; what serves the files is a child process, whose number is in the PID file: SIGUSR1 stops it, SIGCONT
lets it go on. (At any moment SIGSTOP could find it with a request that it has read and not answered: the
kernel lets nobody who waits for such an answer be killed.) It has one folder with files `far-1.bin` and so
on. It needs Linux, a mount namespace of its own (`unshare -Urm`) and /dev/fuse; it speaks FUSE itself
(https://www.kernel.org/doc/html/latest/filesystems/fuse.html, linux/fuse.h), as there is nothing smaller.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import stat
import struct
import sys
from pathlib import Path

SIZE = 12 * 2**20
ROOT = 1  # the number of its node; the files have the next ones
NAMES = {b"far-%d.bin" % number: ROOT + number for number in (1, 2, 3)}
HEADER = struct.Struct("<IIQQIIII")


def content(begin: int, end: int) -> bytes:
    return bytes(min(end, SIZE) - begin)


def attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
    size = 0 if node == ROOT else SIZE
    return struct.pack("<6Q10I", node, size, 0, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def entry(name: bytes) -> bytes:
    """Of the folder."""
    node = NAMES[name]
    line = struct.pack("<QQII", node, node, len(name), stat.S_IFREG >> 12) + name
    return line.ljust(-(-len(line) // 8) * 8, b"\0")


def answer(code: int, node: int, body: bytes) -> bytes | int:
    """The body of the answer, or the number of an error."""
    match code:
        case 26:  # INIT
            return struct.pack("<IIIIHHIIHH32x", 7, 31, 131072, 0, 12, 9, 131072, 1, 32, 0)
        case 1:  # LOOKUP
            found = NAMES.get(body.rstrip(b"\0")) if node == ROOT else None
            if found is None:
                return errno.ENOENT
            return struct.pack("<4Q2I", found, 0, 0, 0, 0, 0) + attributes(found)
        case 3:  # GETATTR
            return struct.pack("<QII", 0, 0, 0) + attributes(node)
        case 14 | 27:  # OPEN, OPENDIR
            return struct.pack("<QII", 0, 0, 0)
        case 15:  # READ
            _, begin, size = struct.unpack_from("<QQI", body)
            return content(begin, begin + size)
        case 28:  # READDIR
            _, begin = struct.unpack_from("<QQ", body)
            return b"".join(entry(name) for name in NAMES) if begin == 0 else b""
        case 17:  # STATFS
            return struct.pack("<5Q10I", 1000, 500, 500, 10, 5, 4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0)
        case 18 | 25 | 29:  # RELEASE, FLUSH, RELEASEDIR
            return b""
    return errno.ENOSYS


def serve(device: int) -> None:
    stopping, tell = os.pipe()
    for descriptor in (device, tell):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.set_wakeup_fd(tell)
    while True:
        ready, _, _ = select.select([device, stopping], [], [])
        if stopping in ready:
            os.read(stopping, 1)
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            request = os.read(device, 2**20)
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            raise
        _, code, number, node, *_ = HEADER.unpack_from(request)
        if code in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET: nobody waits
            continue
        told = answer(code, node, request[HEADER.size :])
        body, problem = (b"", -told) if isinstance(told, int) else (told, 0)
        try:
            os.write(device, struct.pack("<IiQ", 16 + len(body), problem, number) + body)
        except OSError as error:
            if error.errno != errno.ENOENT:  # else who asked has gone
                raise


def main(folder: str, pid_file: str, *command: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hanging", folder.encode(), b"fuse.sshfs", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    child = os.fork()
    if child == 0:
        serve(device)
        os._exit(0)
    Path(pid_file).write_text(str(child))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
