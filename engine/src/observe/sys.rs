//! The shared mapping behind the counters: the one place of this folder with `unsafe`.

use std::{
    os::fd::OwnedFd,
    ptr::{NonNull, null_mut},
    sync::atomic::AtomicU64,
};

use rustix::{
    fs::{SealFlags, fcntl_get_seals, fstat},
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
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
    pub(super) fn map(file: &OwnedFd) -> Result<Self, Errno> {
        let seals = fcntl_get_seals(file)?;
        let is_long_enough = usize::try_from(fstat(file)?.st_size).is_ok_and(|size| size >= BYTES);
        if !seals.contains(SealFlags::SHRINK) || !is_long_enough {
            return Err(Errno::INVAL);
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe { mmap(null_mut(), BYTES, protection, MapFlags::SHARED, file, 0) }?;
        // The kernel maps nothing at address 0 that was not asked for.
        Ok(SharedWords { words: NonNull::new(address.cast()).ok_or(Errno::INVAL)? })
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
        let _ = unsafe { munmap(self.words.as_ptr().cast(), BYTES) };
    }
}
