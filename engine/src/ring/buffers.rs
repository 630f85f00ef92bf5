//! The arena: memory that receives land in, in buffers of one size that are lent and come back.
//!
//! With provided buffers the kernel picks a free buffer when data arrives ([`BufferRing`]), so an idle
//! connection holds none. Without them [`Pool::borrow_one`] lends one to each receive that is about to
//! succeed. Either way what was received is a [`Buf`], which gives its buffer back when it is dropped.
//!
//! Free buffers are taken last in, first out, and only a window of them is published to the kernel: the
//! kernel goes round its ring, and a ring of all buffers would touch, and so keep resident, all of them.
//!
//! Shares: the arena has two parts, one for clients and one for backends, so that neither can take the other's buffers;
//! and of the backends' part each cluster may hold a quarter ([`Share`]). What a peer sends beyond that is copied out of
//! the arena at once ([`Pool::is_scarce`]).
//!
//! In front of each buffer there is room ([`ROOM_IN_FRONT`]): a head that is written anew, and is longer than the one that was
//! received, stands there in front of the body that came with it, and both leave in one send without having been copied. So
//! buffers are no multiple of a page apart, which also keeps them out of each other's way in the processor's caches.

use std::{
    cell::{Cell, RefCell},
    fmt,
    hash::{Hash, Hasher},
    io,
    ops::{Deref, DerefMut},
    ptr::{NonNull, null_mut},
    rc::Rc,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{IoUring, types::BufRingEntry};
use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap_anonymous, munmap},
};

use super::published::{Entries, Window};

/// Whose a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The supervisor's or another worker's.
    Control,
    /// A listening socket.
    Listener,
    /// A client's.
    Downstream,
    /// A backend's; its cluster has this share of the backends' buffers.
    Upstream(Share),
}

impl Role {
    /// The part of the arena that its receives land in.
    pub(super) fn part(self) -> Part {
        match self {
            Role::Control | Role::Listener | Role::Downstream => Part::Downstream,
            Role::Upstream(_) => Part::Upstream,
        }
    }
}

/// Whose share of the backends' buffers a buffer is taken from. There are 255: of more clusters some have one together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u8);

impl Share {
    /// The share of a cluster.
    pub fn of(cluster: &str) -> Share {
        let mut hasher = rustc_hash::FxHasher::default();
        cluster.hash(&mut hasher);
        Share((hasher.finish() % 255) as u8 + 1)
    }
}

/// What a head may be longer than the one that was received in its place (bytes).
pub(super) const ROOM_IN_FRONT: u16 = 512;

/// A part of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Part {
    /// For what clients send, and for orders.
    Downstream = 0,
    /// For what backends send.
    Upstream = 1,
}

impl Part {
    pub(super) const ALL: [Part; 2] = [Part::Downstream, Part::Upstream];
}

/// An anonymous mapping: page-aligned, zeroed, resident only where touched.
struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> io::Result<Mapping> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe { mmap_anonymous(null_mut(), length, protection, MapFlags::PRIVATE) }?;
        // The kernel maps nothing at address 0 that was not asked for.
        Ok(Mapping { base: NonNull::new(base.cast()).ok_or(Errno::INVAL)?, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; the owner of the mapping keeps it until the last user is gone.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// Where a received buffer stands in the queue of its socket.
#[derive(Clone, Copy, Default)]
pub(super) struct Link {
    /// The next buffer of the queue; meaningless in its last.
    pub(super) next: u16,
    /// Bytes received into this one.
    pub(super) length: u16,
}

/// The arena and its free lists.
pub(super) struct Pool {
    memory: Mapping,
    size: u32,
    /// Of each part.
    free: [RefCell<Vec<u16>>; 2],
    links: Box<[Cell<Link>]>,
    /// The share that each lent buffer is taken from; 0 = none.
    shares: Box<[Cell<u8>]>,
    /// Buffers that each share has.
    taken: Box<[Cell<u16>]>,
}

impl Pool {
    /// `count` buffers of `size` bytes each (at most 65,023); one half of them for each part.
    pub(super) fn new(count: u16, size: u32) -> io::Result<Pool> {
        let largest = u32::from(u16::MAX - ROOM_IN_FRONT);
        if count < 2 || !count.is_multiple_of(2) || size == 0 || size > largest {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let half = count / 2;
        Ok(Pool {
            memory: Mapping::new(usize::from(count) * distance(size))?,
            size,
            // Popped from the back: the lowest numbers go first.
            free: [
                (0..half).rev().collect::<Vec<_>>().into(),
                (half..count).rev().collect::<Vec<_>>().into(),
            ],
            links: vec![Cell::default(); usize::from(count)].into_boxed_slice(),
            shares: vec![Cell::default(); usize::from(count)].into_boxed_slice(),
            taken: vec![Cell::default(); 256].into_boxed_slice(),
        })
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Buffers of a part.
    pub(super) fn count(&self) -> u16 {
        // The constructor took a u16.
        (self.links.len() / 2) as u16
    }

    fn part_of(&self, id: u16) -> Part {
        if id < self.count() { Part::Downstream } else { Part::Upstream }
    }

    fn free(&self, part: Part) -> &RefCell<Vec<u16>> {
        &self.free[part as usize]
    }

    pub(super) fn free_count(&self, part: Part) -> usize {
        self.free(part).borrow().len()
    }

    /// Takes a free buffer, to be lent to a receive; comes back by [`Pool::give_back`] or in a [`Buf`].
    pub(super) fn borrow_one(&self, part: Part) -> Option<u16> {
        self.free(part).borrow_mut().pop()
    }

    /// Counts a buffer that was received into towards the share of whose it is.
    pub(super) fn charge(&self, id: u16, role: Role) {
        if let Role::Upstream(Share(share)) = role {
            self.shares[usize::from(id)].set(share);
            let taken = &self.taken[usize::from(share)];
            taken.set(taken.get() + 1);
        }
    }

    pub(super) fn give_back(&self, id: u16) {
        let part = self.part_of(id);
        debug_assert!(self.free_count(part) < usize::from(self.count()));
        let share = self.shares[usize::from(id)].take();
        if share != 0 {
            let taken = &self.taken[usize::from(share)];
            taken.set(taken.get() - 1);
        }
        self.free(part).borrow_mut().push(id);
    }

    /// Whether what comes next for `role` must not stay in the arena: its part has `published` buffers with the kernel and
    /// less than a quarter at hand, or its cluster has a quarter already.
    pub(super) fn is_scarce(&self, role: Role, published: u16) -> bool {
        let quarter = usize::from(self.count()) / 4;
        let over_share = match role {
            Role::Upstream(Share(share)) => usize::from(self.taken[usize::from(share)].get()) > quarter,
            Role::Control | Role::Listener | Role::Downstream => false,
        };
        over_share || self.free_count(role.part()) + usize::from(published) < quarter
    }

    pub(super) fn link(&self, id: u16) -> Link {
        self.links[usize::from(id)].get()
    }

    pub(super) fn set_link(&self, id: u16, link: Link) {
        self.links[usize::from(id)].set(link);
    }

    /// The first byte of the room in front of a buffer.
    fn origin(&self, id: u16) -> *mut u8 {
        assert!(usize::from(id) < self.links.len(), "the kernel gives back what it was given");
        // SAFETY: the arena is `links.len() * distance(size)` bytes and `id` is below that length.
        unsafe { self.memory.base.as_ptr().add(usize::from(id) * distance(self.size)) }
    }

    /// The first byte of a buffer.
    pub(super) fn address(&self, id: u16) -> *mut u8 {
        // SAFETY: the room in front is a part of what `origin` points to.
        unsafe { self.origin(id).add(usize::from(ROOM_IN_FRONT)) }
    }
}

/// From one buffer to the next (bytes).
fn distance(size: u32) -> usize {
    usize::from(ROOM_IN_FRONT) + size as usize
}

/// Received bytes, most often in a buffer of the arena. Derefs to what has not been consumed yet.
pub struct Buf {
    memory: Memory,
    /// In the arena counted from the room in front.
    start: u16,
    end: u16,
}

enum Memory {
    /// A buffer of the arena.
    Lent { pool: Rc<Pool>, id: u16 },
    /// Private memory: what was made of several receives.
    #[expect(clippy::box_collection, reason = "a thin pointer, so that what waits for a request stays small")]
    Own(Box<Vec<u8>>),
}

impl Buf {
    /// Takes over buffer `id`, which holds `length` received bytes and which nobody else uses.
    pub(super) fn take(pool: &Rc<Pool>, id: u16, length: u16) -> Buf {
        debug_assert!(u32::from(length) <= pool.size);
        let (start, end) = (ROOM_IN_FRONT, ROOM_IN_FRONT + length);
        Buf { memory: Memory::Lent { pool: Rc::clone(pool), id }, start, end }
    }

    /// Bytes that do not lie in the arena: at most 65,535.
    pub fn owned(bytes: Vec<u8>) -> Buf {
        assert!(
            bytes.len() <= usize::from(u16::MAX),
            "a buffer of its own is no larger than those of the arena"
        );
        // Not more than that.
        let end = bytes.len() as u16;
        Buf { memory: Memory::Own(Box::new(bytes)), start: 0, end }
    }

    /// A buffer as if `bytes` had been received into it, of an arena of its own.
    #[cfg(test)]
    pub(crate) fn received(bytes: &[u8]) -> Buf {
        let pool = Rc::new(Pool::new(2, u32::from(u16::MAX - ROOM_IN_FRONT)).unwrap());
        let id = pool.borrow_one(Part::Downstream).unwrap();
        let mut buffer = Buf::take(&pool, id, u16::try_from(bytes.len()).unwrap());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Whether it takes a buffer of the arena, which nobody may hold who waits for a peer.
    pub fn is_lent(&self) -> bool {
        matches!(self.memory, Memory::Lent { .. })
    }

    /// Moves the bytes out of the arena.
    #[must_use]
    pub fn into_owned(self) -> Buf {
        if self.is_lent() { Buf::owned(self.to_vec()) } else { self }
    }

    /// Forgets the first `count` bytes.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "a buffer is consumed at most whole");
        // Not more than `len`, which fits.
        self.start += count as u16;
    }

    /// Puts `bytes` in front, where something was forgotten or nothing ever stood. False when there is not enough room.
    pub fn prepend(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > usize::from(self.start) {
            return false;
        }
        // Not more than `start`, which fits.
        self.start -= bytes.len() as u16;
        self[..bytes.len()].copy_from_slice(bytes);
        true
    }

    /// Keeps only the first `count` bytes.
    pub fn truncate(&mut self, count: usize) {
        if count < self.len() {
            self.end = self.start + count as u16;
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let (start, end) = (usize::from(self.start), usize::from(self.end));
        match &self.memory {
            // SAFETY: `start <= end <= distance(size)`, the bytes were written by the kernel or by `prepend` (or are zero), and
            // the buffer, with the room in front, is ours alone from `take` until it is dropped.
            Memory::Lent { pool, id } => unsafe {
                std::slice::from_raw_parts(pool.origin(*id).add(start), end - start)
            },
            Memory::Own(bytes) => &bytes[start..end],
        }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, end) = (usize::from(self.start), usize::from(self.end));
        match &mut self.memory {
            // SAFETY: as in `deref`, and `&mut self` makes it the only access.
            Memory::Lent { pool, id } => unsafe {
                std::slice::from_raw_parts_mut(pool.origin(*id).add(start), end - start)
            },
            Memory::Own(bytes) => &mut bytes[start..end],
        }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Memory::Lent { pool, id } = &self.memory {
            pool.give_back(*id);
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The memory of a buffer ring, which the kernel reads.
struct MappedEntries {
    mapping: Mapping,
    pool: Rc<Pool>,
}

impl MappedEntries {
    fn first(&self) -> *mut BufRingEntry {
        self.mapping.base.as_ptr().cast()
    }
}

impl Entries for MappedEntries {
    fn write(&mut self, place: u16, id: u16) {
        assert!(place < self.pool.count(), "a ring has a place for each buffer of its part");
        // SAFETY: the place is inside the mapping. The kernel never writes there, and reads the entries below the tail only,
        // of which this is none (see `published`); so the entry is ours alone, but for the tail inside the first one, which
        // the kernel reads and which is not written here.
        let entry = unsafe { &mut *self.first().add(usize::from(place)) };
        entry.set_addr(self.pool.address(id) as u64);
        entry.set_len(self.pool.size);
        entry.set_bid(id);
    }

    fn show(&mut self, tail: u16, order: Ordering) {
        // SAFETY: the tail lies inside the first entry of the mapping and is aligned; the kernel's access to it is an atomic
        // load.
        let shown = unsafe { &*BufRingEntry::tail(self.first()).cast::<AtomicU16>() };
        shown.store(tail, order);
    }
}

/// The ring by which the free buffers of a part are published to the kernel (5.19); the part is its group.
pub(super) struct BufferRing {
    pool: Rc<Pool>,
    part: Part,
    window: Window<MappedEntries>,
}

impl BufferRing {
    /// Registers a ring over the downstream part of a pool of its own, of twice `count` buffers; for the probe.
    pub(super) fn register(uring: &IoUring, count: u16, size: u32) -> io::Result<BufferRing> {
        BufferRing::register_part(uring, Rc::new(Pool::new(2 * count, size)?), Part::Downstream)
    }

    /// Registers a ring over a part of `pool`, whose count must be a power of two, at most 32,768. Nothing is published yet.
    pub(super) fn register_part(uring: &IoUring, pool: Rc<Pool>, part: Part) -> io::Result<BufferRing> {
        let count = pool.count();
        if !count.is_power_of_two() || count > 1 << 15 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mapping = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        // SAFETY: the mapping is page-aligned, holds `count` entries, and lives as long as the value; the
        // owner of the ring drops the ring before it.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                mapping.base.as_ptr() as u64,
                count,
                part as u16,
                0,
            )
        }?;
        let entries = MappedEntries { mapping, pool: Rc::clone(&pool) };
        Ok(BufferRing { pool, part, window: Window::new(entries, count) })
    }

    /// The kernel took a buffer out of the ring, as a completion says.
    pub(super) fn consumed(&mut self) {
        self.window.consumed();
    }

    /// The kernel ran out: publish more from now on.
    pub(super) fn widen(&mut self) {
        self.window.widen();
    }

    /// Fills the window up from the free list; returns how many buffers the kernel now has.
    pub(super) fn refill(&mut self) -> u16 {
        self.window.refill(|| self.pool.borrow_one(self.part))
    }

    /// Buffers that the kernel has.
    pub(super) fn published(&self) -> u16 {
        self.window.published()
    }

    /// What was received into buffer `id`; for the probe.
    pub(super) fn bytes(&self, id: u16, length: u16) -> Buf {
        Buf::take(&self.pool, id, length)
    }
}

impl PartialEq<&[u8; 8]> for Buf {
    fn eq(&self, other: &&[u8; 8]) -> bool {
        **self == other[..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::published::FIRST_TARGET;

    #[test]
    fn a_buffer_comes_back_when_its_bytes_are_dropped_and_is_lent_again_first() {
        let pool = Rc::new(Pool::new(8, 64).unwrap());
        let first = pool.borrow_one(Part::Downstream).unwrap();
        let second = pool.borrow_one(Part::Downstream).unwrap();
        assert_ne!(first, second);
        let mut bytes = Buf::take(&pool, first, 10);
        bytes.fill(7);
        bytes.advance(4);
        bytes.truncate(5);
        assert_eq!(&*bytes, &[7; 5]);
        drop(bytes);
        assert_eq!(pool.free_count(Part::Downstream), 3);
        assert_eq!(pool.borrow_one(Part::Downstream), Some(first));
        pool.give_back(second);
    }

    #[test]
    fn something_stands_in_front_of_what_was_received_as_far_as_there_is_room() {
        let pool = Rc::new(Pool::new(4, 64).unwrap());
        let before = Buf::take(&pool, pool.borrow_one(Part::Downstream).unwrap(), 64);
        let mut bytes = Buf::take(&pool, pool.borrow_one(Part::Downstream).unwrap(), 64);
        bytes.fill(7);
        bytes.advance(10);
        let room = usize::from(ROOM_IN_FRONT) + 10;
        assert!(!bytes.prepend(&vec![1; room + 1]));
        assert_eq!(bytes.len(), 54);
        assert!(bytes.prepend(&vec![1; room]) && !bytes.prepend(&[2]));
        assert_eq!((&bytes[..room], &bytes[room..]), (&vec![1; room][..], &[7; 54][..]));
        assert_eq!(&*before, &[0; 64], "it is the room of nobody else");
        let mut own = Buf::owned(vec![7; 3]);
        assert!(!own.prepend(&[1]));
        own.advance(2);
        assert!(own.prepend(&[1]) && *own == [1, 7]);
    }

    #[test]
    fn a_part_lends_each_of_its_buffers_once_and_then_none_and_never_those_of_the_other() {
        let pool = Pool::new(6, 64).unwrap();
        for (part, expected) in [(Part::Downstream, [0, 1, 2]), (Part::Upstream, [3, 4, 5])] {
            let mut lent: Vec<_> = std::iter::from_fn(|| pool.borrow_one(part)).collect();
            lent.sort_unstable();
            assert_eq!(lent, expected);
        }
        pool.give_back(4);
        assert_eq!((pool.borrow_one(Part::Downstream), pool.borrow_one(Part::Upstream)), (None, Some(4)));
    }

    #[test]
    fn a_cluster_that_has_its_quarter_is_over_its_share_and_the_others_are_not() {
        let pool = Pool::new(32, 64).unwrap();
        let (greedy, modest) = (Role::Upstream(Share(1)), Role::Upstream(Share(2)));
        let mut lent = Vec::new();
        for _ in 0..5 {
            assert!(!pool.is_scarce(greedy, 0));
            let id = pool.borrow_one(Part::Upstream).unwrap();
            pool.charge(id, greedy);
            lent.push(id);
        }
        assert!(pool.is_scarce(greedy, 0));
        assert!(!pool.is_scarce(modest, 0) && !pool.is_scarce(Role::Downstream, 0));
        pool.give_back(lent[0]);
        assert!(!pool.is_scarce(greedy, 0));
    }

    #[test]
    fn where_less_than_a_quarter_of_a_part_is_at_hand_it_is_scarce_for_all_who_use_that_part() {
        let pool = Pool::new(32, 64).unwrap();
        let lent: Vec<_> = (0..13).filter_map(|_| pool.borrow_one(Part::Downstream)).collect();
        assert_eq!(lent.len(), 13);
        assert!(pool.is_scarce(Role::Downstream, 0) && !pool.is_scarce(Role::Downstream, 1));
        assert!(!pool.is_scarce(Role::Upstream(Share(1)), 0));
    }

    #[test]
    fn what_the_kernel_writes_where_an_entry_points_is_what_the_buffer_of_that_number_holds() {
        let pool = Rc::new(Pool::new(8, 64).unwrap());
        let mapping = Mapping::new(4 * size_of::<BufRingEntry>()).unwrap();
        let entries = MappedEntries { mapping, pool: Rc::clone(&pool) };
        // As the kernel sees it: `struct io_uring_buf { addr: u64, len: u32, bid: u16, resv: u16 }`, the first `resv` being the
        // tail.
        let first = entries.first().cast::<u8>();
        let mut window = Window::new(entries, 4);
        assert_eq!(window.refill(|| pool.borrow_one(Part::Downstream)), 4);
        // SAFETY: the mapping has four entries of 16 bytes, aligned, and is there until the end.
        assert_eq!(unsafe { first.add(14).cast::<u16>().read() }, 4);
        for place in 0..4_u8 {
            // SAFETY: as above; the address is that of a buffer which nobody else uses now.
            let (id, length) = unsafe {
                let entry = first.add(16 * usize::from(place));
                let length = entry.add(8).cast::<u32>().read();
                let address = usize::try_from(entry.cast::<u64>().read()).unwrap();
                std::ptr::with_exposed_provenance_mut::<u8>(address).write_bytes(place + 1, length as usize);
                (entry.add(12).cast::<u16>().read(), u16::try_from(length).unwrap())
            };
            window.consumed();
            assert_eq!(&*Buf::take(&pool, id, length), &[place + 1; 64]);
        }
        assert_eq!((window.published(), pool.free_count(Part::Downstream)), (0, 4));
    }

    #[test]
    #[cfg_attr(miri, ignore = "it needs a ring of the kernel")]
    fn only_a_window_of_the_arena_is_published_and_it_widens_under_demand() {
        let uring = IoUring::new(4).unwrap();
        let Ok(mut ring) = BufferRing::register(&uring, 1024, 64) else {
            // As on Linux before 5.19; CI runs these tests on such a one too, in a guest where `CI` is not set.
            assert!(std::env::var_os("CI").is_none(), "CI skips nothing, and there are no provided buffers");
            return;
        };
        assert_eq!(ring.refill(), FIRST_TARGET);
        for _ in 0..FIRST_TARGET {
            ring.consumed();
        }
        assert_eq!(ring.published(), 0);
        assert_eq!(ring.refill(), 2 * FIRST_TARGET);
    }
}
