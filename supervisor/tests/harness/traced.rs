//! A worker that is made to run a stranger's code: a process that is stopped by `ptrace(2)` and makes the system calls that the test
//! names, with its own privileges and restrictions, as code in it could.

use nix::{
    libc::user_regs_struct,
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{Process, wait};

/// A process that stands still and does as it is told, until this is dropped.
pub(crate) struct Traced {
    process: Pid,
    /// Where it stood.
    before: user_regs_struct,
    /// Where its code has the instruction `syscall`.
    call: u64,
}

/// The bytes of `syscall`, as the lower half of a word.
const SYSCALL: i64 = 0x050f;

impl Traced {
    /// Stops a process that waits in a system call, as an idle worker does. Only the thread that has called this may go on with it.
    pub(crate) fn stop(process: Process) -> Traced {
        let process = Pid::from_raw(process.0 as i32);
        // It may still have something to do.
        wait::within(wait::SOON, "a process that waits in a system call", || Traced::stop_now(process))
    }

    fn stop_now(process: Pid) -> Option<Traced> {
        ptrace::attach(process).expect("ptrace: root, or its parent");
        assert!(matches!(waitpid(process, None), Ok(WaitStatus::Stopped(_, Signal::SIGSTOP))));
        let before = ptrace::getregs(process).unwrap();
        let call = before.rip - 2;
        let code = ptrace::read(process, call as ptrace::AddressType).unwrap();
        if code & 0xffff != SYSCALL {
            ptrace::detach(process, None).unwrap();
            return None;
        }
        Some(Traced { process, before, call })
    }

    /// Makes a system call in it: what that returns, or the error.
    pub(crate) fn call(&self, number: i64, arguments: [i64; 6]) -> Result<u64, nix::Error> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments.map(i64::cast_unsigned);
        let rax = number.cast_unsigned();
        // Not in a system call: nothing is to be made once more.
        let orig_rax = u64::MAX;
        let registers =
            user_regs_struct { rip: self.call, rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, ..self.before };
        ptrace::setregs(self.process, registers).unwrap();
        ptrace::step(self.process, None).unwrap();
        assert!(matches!(waitpid(self.process, None), Ok(WaitStatus::Stopped(_, Signal::SIGTRAP))));
        let result = ptrace::getregs(self.process).unwrap().rax;
        match result.cast_signed() {
            error @ -4095..=-1 => Err(nix::Error::from_raw(-error as i32)),
            _ => Ok(result),
        }
    }

    /// Puts bytes where they disturb nobody, behind what its code has on the stack; where that is.
    pub(crate) fn put(&self, bytes: &[u8]) -> i64 {
        let place = (self.before.rsp - 2048) & !0xf;
        for (n, part) in (0..).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            let at = (place + n * 8) as ptrace::AddressType;
            ptrace::write(self.process, at, i64::from_ne_bytes(word)).unwrap();
        }
        place.cast_signed()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = ptrace::setregs(self.process, self.before);
        let _ = ptrace::detach(self.process, None);
    }
}
