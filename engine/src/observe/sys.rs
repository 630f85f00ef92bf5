//! The shared mapping behind the counters: the one place of this folder with `unsafe`.

use std::{
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        mman::{MapFlags, ProtFlags, mmap, munmap},
        stat::fstat,
    },
};

/// One page of shared 64-bit words, mapped for as long as the value lives.
pub(super) struct SharedWords {
    words: NonNull<AtomicU64>,
}

/// Size of the mapping (bytes).
pub(super) const BYTES: usize = 4096;
/// Words in it.
pub(super) const WORDS: usize = BYTES / size_of::<AtomicU64>();

impl SharedWords {
    /// Maps the first page of `file`, which must be memory that is at least that long and sealed against shrinking:
    /// reading where a file has ended kills a process (SIGBUS), and a worker has the descriptor too.
    pub(super) fn map(file: &OwnedFd) -> nix::Result<Self> {
        let seals = SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS)?);
        let is_long_enough = usize::try_from(fstat(file)?.st_size).is_ok_and(|size| size >= BYTES);
        if !seals.contains(SealFlag::F_SEAL_SHRINK) || !is_long_enough {
            return Err(nix::Error::EINVAL);
        }
        let length = std::num::NonZeroUsize::new(BYTES).ok_or(nix::Error::EINVAL)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                file.as_fd(),
                0,
            )
        }?;
        Ok(SharedWords { words: address.cast() })
    }

    /// The words; all processes that map the page see the same ones.
    pub(super) fn words(&self) -> &[AtomicU64; WORDS] {
        // SAFETY: the mapping is page-aligned, `BYTES` long and cannot become shorter; whatever another process has written
        // there is a value of `AtomicU64`; it stays until `self` is dropped; all access goes through atomics.
        unsafe { self.words.cast::<[AtomicU64; WORDS]>().as_ref() }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nobody borrows from it any more.
        let _ = unsafe { munmap(self.words.cast(), BYTES) };
    }
}
