"""Runs a program on a kernel that, for all the program can tell, has no sendmmsg(2).

    without_sendmmsg.py PROGRAM ARGUMENT...

libuv (in BIND's dig since 9.18) sends datagrams with sendmmsg as a bare system call, past the libc
functions that socksify puts itself before, so they leave without their SOCKS5 header. On a kernel
without that call it uses sendmsg of the libc, which socksify knows. A seccomp filter answers ENOSYS.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

_CALL = {"x86_64": 307, "aarch64": 269}

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_SECCOMP_RET_ALLOW = 0x7FFF0000
_SECCOMP_RET_ERRNO = 0x00050000

# Classic BPF: load the call's number, compare, return.
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def main(program: list[str]) -> None:
    code = b"".join(
        _INSTRUCTION.pack(*instruction)
        for instruction in (
            (_LOAD_WORD, 0, 0, 0),
            (_JUMP_EQUAL, 0, 1, _CALL[platform.machine()]),
            (_RETURN, 0, 0, _SECCOMP_RET_ERRNO | errno.ENOSYS),
            (_RETURN, 0, 0, _SECCOMP_RET_ALLOW),
        )
    )
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    filter_program = _Program(len(code) // _INSTRUCTION.size, code)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_program)),
    ):
        if prctl(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
