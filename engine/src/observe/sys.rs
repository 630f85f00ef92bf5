//! The shared mapping behind counters and the ledger: the one place of this folder with `unsafe`.

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

/// Shared 64-bit words, mapped for as long as the value lives.
pub(crate) struct SharedWords {
    words: NonNull<AtomicU64>,
    count: usize,
}

impl SharedWords {
    /// Maps the first `count` words of `file`, more than none, which must be memory that is at least that long and sealed against
    /// shrinking: reading where a file has ended kills a process (SIGBUS), and a worker has the descriptor too.
    pub(crate) fn map(file: &OwnedFd, count: usize) -> Result<Self, Errno> {
        let bytes = count * size_of::<AtomicU64>();
        let seals = fcntl_get_seals(file)?;
        let is_long_enough = usize::try_from(fstat(file)?.st_size).is_ok_and(|size| size >= bytes);
        if !seals.contains(SealFlags::SHRINK) || !is_long_enough || count == 0 {
            return Err(Errno::INVAL);
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let address = unsafe { mmap(null_mut(), bytes, protection, MapFlags::SHARED, file, 0) }?;
        // The kernel maps nothing at address 0 that was not asked for.
        Ok(SharedWords { words: NonNull::new(address.cast()).ok_or(Errno::INVAL)?, count })
    }

    /// The words; all processes that map the page see the same ones.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `count` words long and cannot become shorter; whatever another process has written
        // there is a value of `AtomicU64`; it stays until `self` is dropped; all access goes through atomics.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nobody borrows from it any more.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}
