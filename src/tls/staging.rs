//! Where records wait between a socket and a TLS session: memory of a thread, lent to whichever
//! session works, so that an idle session holds none.

use std::cell::Cell;
use std::io::{self, ErrorKind};

/// Bytes of a record's header [RFC 8446 §5.1].
pub const RECORD_HEADER: usize = 5;
/// Bytes of the longest record, header included: the plaintext and what TLS 1.2 allows its
/// protection to add [RFC 5246 §6.2.3].
pub const MAX_RECORD: usize = RECORD_HEADER + 16 * 1024 + 2048;

/// Bytes that the largest staging, that of a relay thread, receives or sends at a time.
pub const LARGEST: usize = 1024 * 1024;

/// Buffers for what comes from a socket and what goes to one.
#[derive(Debug)]
pub struct Staging {
    /// What was received and not yet read by the session: `start..end` of the memory.
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// What the session has written and no socket has taken.
    pub output: Vec<u8>,
    /// How much of `output` may come together before it is sent.
    pub output_limit: usize,
}

/// A place where a thread keeps its staging while no session has it.
pub type Shelf = Cell<Option<Box<Staging>>>;

thread_local! {
    /// The staging of a thread of the runtime, which has many connections in their beginnings.
    static OF_THIS_THREAD: Shelf = const { Cell::new(None) };
}

impl Staging {
    /// Receives up to `size` bytes at a time, which are at least one record, and sends about as
    /// many.
    pub fn new(size: usize) -> Box<Self> {
        Box::new(Staging {
            input: vec![0; size.max(MAX_RECORD)],
            start: 0,
            end: 0,
            output: Vec::new(),
            output_limit: size,
        })
    }

    /// What has been received and not yet read.
    pub fn received(&self) -> &[u8] {
        &self.input[self.start..self.end]
    }

    /// How far what was received has been taken.
    pub fn place(&self) -> usize {
        self.start
    }

    /// What has been taken since it was this far, unless something was received meanwhile.
    pub fn read_since(&self, place: usize) -> &[u8] {
        self.input.get(place..self.start).unwrap_or(&[])
    }

    /// Takes up to `size` of the bytes that were received.
    pub fn take(&mut self, size: usize) -> &[u8] {
        let taken = self.start..self.end.min(self.start + size);
        self.start = taken.end;
        &self.input[taken]
    }

    /// Begins with bytes that were received earlier, and has room for one more record behind them.
    pub fn refill(&mut self, earlier: &[u8]) {
        if self.input.len() < earlier.len() + MAX_RECORD {
            self.input.resize(earlier.len() + MAX_RECORD, 0);
        }
        self.input[..earlier.len()].copy_from_slice(earlier);
        (self.start, self.end) = (0, earlier.len());
    }

    /// Receives more with `receive`, which says how much it put into the room that it was given.
    pub fn receive<E>(
        &mut self,
        receive: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.input.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let count = receive(&mut self.input[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        self.output.clear();
    }
}

/// Sends all of `bytes`, or as many as `send` takes: so many, and why no more.
pub fn send_all(
    bytes: &[u8],
    mut send: impl FnMut(&[u8]) -> io::Result<usize>,
) -> (usize, io::Result<()>) {
    let mut sent = 0;
    while sent < bytes.len() {
        match send(&bytes[sent..]) {
            Ok(0) => return (sent, Err(ErrorKind::WriteZero.into())),
            Ok(count) => sent += count,
            Err(error) => return (sent, Err(error)),
        }
    }
    (sent, Ok(()))
}

/// Calls `work` with the shelf of this thread of the runtime.
pub fn with_shelf<T>(work: impl FnOnce(&Shelf) -> T) -> T {
    OF_THIS_THREAD.with(work)
}
