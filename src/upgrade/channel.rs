//! Frames with descriptors over a UNIX stream socket.
//!
//! A frame is a header of twelve bytes - magic, kind, number of descriptors, length - and a
//! payload. The descriptors travel with the header. Everything is bounded before it is read.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const MAGIC: [u8; 4] = *b"MQPU";
const HEADER: usize = 12;
/// Descriptors in one frame; the kernel takes 253.
pub const MAX_DESCRIPTORS: usize = 240;
/// The longest payload: what a batch of pairs owes at most in any version (2 MiB each), and room
/// for their records.
pub const MAX_PAYLOAD: usize = 256 * 1024 * 1024;
/// A payload is read in pieces of this size, so that memory follows what arrives.
const PIECE: usize = 1024 * 1024;

/// One frame.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: u8,
    /// Its content.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// One end of the connection between the two processes.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    /// The process at the other end; a descriptor is not fooled by a process id that is used again.
    peer: OwnedFd,
}

impl Channel {
    /// Takes a connected socket whose peer must be a process of this user or of root.
    ///
    /// # Errors
    /// When it is another user's, or the socket cannot be set up.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let pid = trusted_peer(&stream)?;
        let peer = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Channel { stream, peer })
    }

    /// The peer goes on as this process: it has become a daemon.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn peer_is_now(&mut self, pid: u32) -> io::Result<()> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(ErrorKind::InvalidData)?;
        self.peer = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(())
    }

    /// Whether the process at the other end has ended, or ends within this time. That a channel
    /// is closed does not say so.
    pub fn peer_has_ended(&self, within: Duration) -> bool {
        let limit = Timespec {
            tv_sec: within.as_secs() as i64,
            tv_nsec: within.subsec_nanos().into(),
        };
        let mut descriptors = [PollFd::new(&self.peer, PollFlags::IN)];
        matches!(
            retry_on_intr(|| poll(&mut descriptors, Some(&limit))),
            Ok(1..)
        )
    }

    /// How long one read or write may take.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        self.stream.set_write_timeout(Some(limit))
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the peer is gone or slow, or the frame is beyond the bounds.
    pub fn send(&self, kind: u8, payload: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if payload.len() > MAX_PAYLOAD || descriptors.len() > MAX_DESCRIPTORS {
            return Err(ErrorKind::InvalidInput.into());
        }
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&MAGIC);
        header[4] = kind;
        header[5] = descriptors.len() as u8;
        header[8..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let slices = [IoSlice::new(&header)];
        let sent =
            retry_on_intr(|| sendmsg(&self.stream, &slices, &mut control, SendFlags::NOSIGNAL))?;
        (&self.stream).write_all(&header[sent..])?;
        (&self.stream).write_all(payload)
    }

    /// Receives a frame; `None` when the peer has closed the connection between two frames.
    ///
    /// # Errors
    /// When the peer is slow or breaks the rules.
    pub fn receive(&self) -> io::Result<Option<Frame>> {
        let broken = |what: &'static str| io::Error::new(ErrorKind::InvalidData, what);
        let mut header = [0; HEADER];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut header)];
        let received = retry_on_intr(|| {
            recvmsg(
                &self.stream,
                &mut slices,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        (&self.stream).read_exact(&mut header[received.bytes..])?;
        let [magic @ .., kind, count, _, _, a, b, c, d] = header;
        if magic != MAGIC {
            return Err(broken("this is no upgrade of mqtt-proxy"));
        }
        if usize::from(count) != descriptors.len() {
            return Err(broken(
                "descriptors are missing: the limit of open files, perhaps",
            ));
        }
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MAX_PAYLOAD {
            return Err(broken("a message is too long"));
        }
        let mut payload = Vec::new();
        while payload.len() < length {
            let start = payload.len();
            payload.resize(length.min(start + PIECE), 0);
            (&self.stream).read_exact(&mut payload[start..])?;
        }
        Ok(Some(Frame {
            kind,
            payload,
            descriptors,
        }))
    }

    /// Gives up on the peer: whatever it sends from now on fails. What it has sent before can
    /// still be received, so that both sides know which of the two it was.
    pub fn end(&self) {
        // The peer may be gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// The process at the other end, which must be one of this user or of root.
///
/// # Errors
/// When it is another user's.
pub fn trusted_peer(stream: &UnixStream) -> io::Result<Pid> {
    let peer = socket_peercred(stream)?;
    if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
        let what = format!("the peer is a process of user {}", peer.uid.as_raw());
        return Err(io::Error::new(ErrorKind::PermissionDenied, what));
    }
    Ok(peer.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn pair() -> (Channel, Channel, UnixStream) {
        let (one, two) = UnixStream::pair().unwrap();
        let raw = one.try_clone().unwrap();
        let limit = Duration::from_secs(5);
        let (one, two) = (Channel::new(one).unwrap(), Channel::new(two).unwrap());
        one.set_limit(limit).unwrap();
        two.set_limit(limit).unwrap();
        (one, two, raw)
    }

    #[test]
    fn frames_keep_their_descriptors_and_their_order() {
        let (old, new, _) = pair();
        let (mut kept, sent) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            old.send(1, b"first", &[]).unwrap();
            old.send(2, &vec![7; 3 << 20], &[sent.as_fd(); 240])
                .unwrap();
            old.send(3, b"", &[sent.as_fd()]).unwrap();
        });
        let first = new.receive().unwrap().unwrap();
        assert_eq!((first.kind, first.payload.as_slice()), (1, &b"first"[..]));
        let second = new.receive().unwrap().unwrap();
        assert_eq!(
            (second.payload.len(), second.descriptors.len()),
            (3 << 20, 240)
        );
        let third = new.receive().unwrap().unwrap();
        assert_eq!((third.kind, third.descriptors.len()), (3, 1));
        writer.join().unwrap();
        let mut received = UnixStream::from(third.descriptors.into_iter().next().unwrap());
        received.write_all(b"x").unwrap();
        kept.read_exact(&mut [0]).unwrap();
        assert!(
            new.receive().unwrap().is_none(),
            "closed between two frames"
        );
    }

    #[test]
    fn what_is_no_frame_is_an_error_and_no_allocation() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"MQPU\x01\x00\x00\x00\xff\xff\xff\xff",
            b"MQPU\x01\x02\x00\x00\x00\x00\x00\x00",
            b"MQPU\x01",
        ] {
            let (_old, new, mut raw) = pair();
            raw.write_all(bytes).unwrap();
            raw.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(new.receive().is_err(), "{bytes:?}");
        }
    }
}
