//! What comes: whole records are opened into the reader's own memory.

use std::io::{self, ErrorKind};

use super::control::{Fatal, alert};
use super::suite::Version;
use super::{
    APPLICATION_DATA, Desk, End, MAX_ANSWERS, MAX_CONTENTS, Pending, Records, Staging, Transport,
};
use crate::tls::staging::RECORD_HEADER;

/// What protection may add to the contents of a record at most [RFC 8446 §5.2].
const MAX_ADDED_1_3: usize = 256;
/// The same in TLS 1.2 [RFC 5246 §6.2.3].
const MAX_ADDED_1_2: usize = 2048;

impl Records {
    /// Whether there is something to read without asking the socket.
    pub fn has_input(&self) -> bool {
        let nothing = Pending::default();
        let pending = self.pending.as_deref().unwrap_or(&nothing);
        match self.end {
            _ if !pending.contents.is_empty() => true,
            Some(end) => end == End::Broken,
            None => self.has_record(&pending.received),
        }
    }

    /// Whether these bytes begin with a whole record, or with something that will never be one.
    fn has_record(&self, bytes: &[u8]) -> bool {
        let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER>() else {
            return false;
        };
        self.check(*header).map_or(true, |size| rest.len() >= size)
    }

    /// See [`crate::tls::session::Session::read`].
    ///
    /// # Errors
    /// `WouldBlock`, those of the transport, or a record that is none.
    pub fn read(
        &mut self,
        staging: &mut Staging,
        transport: &mut impl Transport,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.is_congested() {
            self.flush(transport)?;
        }
        self.at_desk(staging, |records, desk| {
            let read = records.read_staged(desk, transport, buffer);
            if records.answer(desk).is_err() {
                records.fail(desk, alert::INTERNAL_ERROR);
            }
            records.answers += desk.staging.output.len() as u32;
            // A broken connection shows when more is to be received.
            let _ = records.send_staged(desk, transport);
            read
        })?
    }

    fn read_staged(
        &mut self,
        desk: &mut Desk<'_>,
        transport: &mut impl Transport,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let mut filled = self.take_contents(buffer);
        loop {
            if let Err(Fatal(description)) = self.open_staged(desk, buffer, &mut filled) {
                self.fail(desk, description);
            }
            match self.end {
                _ if filled > 0 => return Ok(filled),
                Some(End::Closed) => return Ok(0),
                Some(End::Broken) => return Err(ErrorKind::InvalidData.into()),
                None if self.owes_answers(desk) => {
                    // Nothing more is opened before they are sent.
                    self.send_staged(desk, transport)?;
                    continue;
                }
                None => {}
            }
            if desk.staging.receive(|room| transport.receive(room))? == 0 {
                // Devices close without a close_notify, and MQTT knows its own packets' ends.
                self.end = Some(End::Closed);
            }
        }
    }

    /// Whether more answers are written than a peer gets memory for.
    fn owes_answers(&self, desk: &Desk<'_>) -> bool {
        self.answers as usize + desk.staging.output.len() > MAX_ANSWERS
    }

    /// What is left of a record that was opened before.
    fn take_contents(&mut self, buffer: &mut [u8]) -> usize {
        let Some(pending) = &mut self.pending else {
            return 0;
        };
        let rest = &pending.contents[pending.contents_read..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        pending.contents_read += count;
        if pending.contents_read == pending.contents.len() {
            (pending.contents, pending.contents_read) = (Vec::new(), 0);
        }
        count
    }

    /// Opens what has come whole, for as long as there is room.
    fn open_staged(
        &mut self,
        desk: &mut Desk<'_>,
        buffer: &mut [u8],
        filled: &mut usize,
    ) -> Result<(), Fatal> {
        while self.end.is_none() && *filled < buffer.len() && !self.owes_answers(desk) {
            let received = desk.staging.received();
            let Some((header, rest)) = received.split_first_chunk::<RECORD_HEADER>() else {
                break;
            };
            let size = self.check(*header)?;
            let Some(body) = rest.get(..size) else {
                break;
            };
            // A record that the reader has no room for is opened elsewhere, if there is nothing
            // else for the reader.
            let needed = self.read.room_to_open(size);
            let room = &mut buffer[*filled..];
            let fits = needed <= room.len();
            if !fits && *filled > 0 {
                break;
            }
            let mut spare = std::mem::take(desk.spare);
            let target = match fits {
                true => &mut *room,
                false => {
                    spare.resize(spare.len().max(needed), 0);
                    &mut spare[..]
                }
            };
            let keyed = &mut desk.contexts.open;
            let opened = self.read.open(keyed, *header, body, target);
            desk.staging.take(RECORD_HEADER + size);
            let result = match opened {
                Err(_) => Err(Fatal(alert::BAD_RECORD_MAC)),
                Ok((kind, count)) => self.opened(desk, kind, &target[..count], needed),
            };
            if let Ok(Opened::Data) = result {
                let count = opened.map_or(0, |(_, count)| count);
                let at_once = count.min(buffer.len() - *filled);
                if !fits {
                    buffer[..at_once].copy_from_slice(&spare[..at_once]);
                    self.keep(&spare[at_once..count]);
                }
                *filled += at_once;
            }
            *desk.spare = spare;
            result?;
            if self.read.is_used_up() {
                self.ask_for_keys(desk)?;
            }
        }
        Ok(())
    }

    /// The size of the body that a header announces, if there can be such a record.
    fn check(&self, header: [u8; RECORD_HEADER]) -> Result<usize, Fatal> {
        let [kind, major, minor, high, low] = header;
        let size = usize::from(u16::from_be_bytes([high, low]));
        let (right, most) = match self.version() {
            // The minor version is without meaning [RFC 8446 §5.1].
            Version::V1_3 => (major == 3, MAX_CONTENTS + MAX_ADDED_1_3),
            Version::V1_2 => ((major, minor) == (3, 3), MAX_CONTENTS + MAX_ADDED_1_2),
        };
        match (self.read.can_be(kind), right) {
            (false, _) => Err(Fatal(alert::UNEXPECTED_MESSAGE)),
            (true, false) => Err(Fatal(alert::PROTOCOL_VERSION)),
            (true, true) if size > most => Err(Fatal(alert::RECORD_OVERFLOW)),
            (true, true) => Ok(size),
        }
    }

    /// Judges what a record has in it; `inside` is its size with padding.
    fn opened(
        &mut self,
        desk: &mut Desk<'_>,
        kind: u8,
        contents: &[u8],
        inside: usize,
    ) -> Result<Opened, Fatal> {
        let most = match self.version() {
            Version::V1_3 => MAX_CONTENTS + 1,
            Version::V1_2 => MAX_CONTENTS,
        };
        if inside > most || contents.len() > usize::from(self.fragment) {
            return Err(Fatal(alert::RECORD_OVERFLOW));
        }
        // Messages are not interleaved with other records [RFC 8446 §5.1].
        if self.message.has_begun() && kind != super::HANDSHAKE {
            return Err(Fatal(alert::UNEXPECTED_MESSAGE));
        }
        if kind == APPLICATION_DATA && !contents.is_empty() {
            self.quiet = 0;
            return Ok(Opened::Data);
        }
        self.control(desk, kind, contents)?;
        Ok(Opened::Nothing)
    }

    fn keep(&mut self, contents: &[u8]) {
        if !contents.is_empty() {
            self.pending.get_or_insert_default().contents = contents.to_vec();
        }
    }
}

/// What a record was.
enum Opened {
    /// Application data.
    Data,
    /// Something for the session itself.
    Nothing,
}
