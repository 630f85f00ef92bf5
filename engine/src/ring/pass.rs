//! Descriptors from process to process, one per message, over a `SOCK_SEQPACKET` pair; nothing here waits.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

use super::sys;

/// Longest text that goes with a descriptor (bytes).
const TEXT_SIZE: usize = 128;

/// Sends a duplicate of `descriptor` with a text of at most 128 bytes.
///
/// # Errors
/// `WouldBlock` when the channel is full; others of `sendmsg(2)`.
pub fn send_descriptor(channel: &impl AsFd, text: &str, descriptor: &OwnedFd) -> io::Result<()> {
    debug_assert!(!text.is_empty() && text.len() <= TEXT_SIZE, "an empty message would look like the end");
    let rights = [descriptor.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&rights)];
    let text = [IoSlice::new(text.as_bytes())];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    loop {
        match sendmsg::<()>(channel.as_fd().as_raw_fd(), &text, &rights, flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            // The process or the user has as many descriptors on their way as it may: the receiver takes some off.
            Err(Errno::ETOOMANYREFS) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives what [`send_descriptor`] sent; `None` when the other side has ended and everything was received.
///
/// # Errors
/// `WouldBlock` when nothing is there; `InvalidData` for what is no such message; others of `recvmsg(2)`.
pub fn receive_descriptor(channel: &impl AsFd) -> io::Result<Option<(String, OwnedFd)>> {
    let mut text = [0; TEXT_SIZE];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let (length, descriptor) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = loop {
            match recvmsg::<()>(channel.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut descriptor = None;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // There is room for one only.
                descriptor = numbers.first().map(|number| sys::owned(*number));
            }
        }
        (message.bytes, descriptor)
    };
    match (length, descriptor) {
        (0, None) => Ok(None),
        (_, Some(descriptor)) => match std::str::from_utf8(&text[..length]) {
            Ok(text) => Ok(Some((text.to_owned(), descriptor))),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        },
        (_, None) => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn descriptors_arrive_one_by_one_with_their_texts_until_the_end() {
        let (here, there) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        assert_eq!(receive_descriptor(&there).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (mut reader, writer) = std::io::pipe().unwrap();
        for text in ["one", "two"] {
            send_descriptor(&here, text, &writer.try_clone().unwrap().into()).unwrap();
        }
        drop((here, writer));
        for text in ["one", "two"] {
            let (got, descriptor) = receive_descriptor(&there).unwrap().unwrap();
            assert_eq!(got, text);
            std::fs::File::from(descriptor).write_all(text.as_bytes()).unwrap();
        }
        assert!(receive_descriptor(&there).unwrap().is_none());
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, "onetwo");
    }

    #[test]
    fn a_channel_that_is_full_says_so() {
        let (here, _there) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let (_, writer) = std::io::pipe().unwrap();
        let writer = writer.into();
        let full = (0..100_000).find_map(|_| send_descriptor(&here, "x", &writer).err());
        assert_eq!(full.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }
}
