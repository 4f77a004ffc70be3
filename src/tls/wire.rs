//! What OpenSSL reads from and writes to in place of a socket: memory.
//!
//! It gets whole records only. OpenSSL itself would take a record's first bytes and hold a buffer
//! of 16 KiB until the last one has come; here an incomplete record costs what has arrived of it.

use std::io::{self, ErrorKind, Read, Write};

use super::staging::{MAX_RECORD, RECORD_HEADER, Staging, send_all};

/// Memory in place of a socket.
#[derive(Debug, Default)]
pub struct Wire {
    /// Lent for as long as a call into the session lasts.
    pub staging: Option<Box<Staging>>,
    /// Received between calls: less than a record, or what nobody has asked for yet.
    received: Vec<u8>,
    /// Written, and not taken by the socket.
    owed: Vec<u8>,
    /// How much of `owed` has been sent.
    sent: usize,
    /// What is left to be read of a record that has come whole.
    unread: usize,
    /// The peer has ended the stream below.
    pub ended: bool,
}

/// How long the record is that these bytes begin with, header included, if it is whole. What will
/// never be one is as long as it is: OpenSSL shall say so.
fn whole_record(bytes: &[u8]) -> Option<usize> {
    let (header, rest) = bytes.split_first_chunk::<RECORD_HEADER>()?;
    let [kind, major, _, high, low] = *header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let possible = (20..=24).contains(&kind) && major == 3 && length <= MAX_RECORD - RECORD_HEADER;
    match possible {
        true => (rest.len() >= length).then_some(RECORD_HEADER + length),
        false => Some(bytes.len()),
    }
}

/// Whether these bytes begin with a whole record, or with something that will never be one.
pub fn has_record(bytes: &[u8]) -> bool {
    whole_record(bytes).is_some()
}

impl Wire {
    /// A wire on which `received` has come already.
    pub fn new(received: Vec<u8>) -> Self {
        Wire {
            received,
            ..Wire::default()
        }
    }

    /// Takes the staging in; [`Wire::give_back`] has to follow.
    pub fn lend(&mut self, mut staging: Box<Staging>) {
        staging.refill(&self.received);
        if !self.received.is_empty() {
            self.received = Vec::new();
        }
        self.staging = Some(staging);
    }

    /// Gives the staging back and keeps what is left in it.
    pub fn give_back(&mut self) -> Option<Box<Staging>> {
        let mut staging = self.staging.take()?;
        self.received = staging.received().to_vec();
        self.owed.extend_from_slice(&staging.output);
        staging.clear();
        Some(staging)
    }

    /// What has been written since `output` had this length.
    pub fn written_since(&self, length: usize) -> &[u8] {
        let staging = self.staging.as_ref();
        staging.map_or(&[], |staging| staging.output.get(length..).unwrap_or(&[]))
    }

    /// How far the staging has been read.
    pub fn place(&self) -> usize {
        self.staging.as_ref().map_or(0, |staging| staging.place())
    }

    /// What has been read since it was this far, unless something was received meanwhile.
    pub fn read_since(&self, place: usize) -> &[u8] {
        let staging = self.staging.as_ref();
        staging.map_or(&[], |staging| staging.read_since(place))
    }

    /// What is received and what is owed, between calls. It has neither any more.
    pub fn take(&mut self) -> (Vec<u8>, Vec<u8>) {
        self.owed.drain(..std::mem::take(&mut self.sent));
        let received = std::mem::take(&mut self.received);
        (received, std::mem::take(&mut self.owed))
    }

    /// Whether OpenSSL can read a whole record.
    pub fn has_record(&self) -> bool {
        match &self.staging {
            Some(staging) => has_record(staging.received()),
            None => has_record(&self.received),
        }
    }

    /// How many bytes have been received and not yet read.
    pub fn received(&self) -> usize {
        match &self.staging {
            Some(staging) => staging.received().len(),
            None => self.received.len(),
        }
    }

    /// Receives more; false at the end of the stream.
    ///
    /// # Errors
    /// Those of `receive`.
    pub fn receive(
        &mut self,
        receive: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        let Some(staging) = &mut self.staging else {
            return Err(ErrorKind::WouldBlock.into());
        };
        let more = staging.receive(receive)? > 0;
        self.ended |= !more;
        Ok(more)
    }

    /// How many bytes the socket has not taken yet.
    pub fn owed(&self) -> usize {
        let staged = self
            .staging
            .as_ref()
            .map_or(0, |staged| staged.output.len());
        self.owed.len() - self.sent + staged
    }

    /// Whether so much is written that it should be sent before there is more.
    pub fn is_full(&self) -> bool {
        let staging = self.staging.as_ref();
        staging.is_none_or(|staging| staging.output.len() >= staging.output_limit)
    }

    /// Sends what is owed.
    ///
    /// # Errors
    /// Those of `send`; what it did not take is still owed.
    pub fn send(&mut self, mut send: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        let (sent, result) = send_all(&self.owed[self.sent..], &mut send);
        self.sent += sent;
        result?;
        if self.sent > 0 {
            (self.owed, self.sent) = (Vec::new(), 0);
        }
        let Some(staging) = &mut self.staging else {
            return Ok(());
        };
        let (sent, result) = send_all(&staging.output, send);
        staging.output.drain(..sent);
        result
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(staging) = &mut self.staging else {
            return Err(ErrorKind::WouldBlock.into());
        };
        if self.unread == 0 {
            self.unread = whole_record(staging.received()).ok_or(ErrorKind::WouldBlock)?;
        }
        let bytes = staging.take(buffer.len().min(self.unread));
        buffer[..bytes.len()].copy_from_slice(bytes);
        self.unread -= bytes.len();
        Ok(bytes.len())
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.staging {
            Some(staging) => staging.output.extend_from_slice(bytes),
            // An alert of a session that is being dropped.
            None => self.owed.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
