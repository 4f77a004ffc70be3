//! Reading forward through a packet that is wholly there.

/// The bytes of a packet that are still to be read, and where in the packet they begin.
///
/// Every method either takes a whole value or leaves the cursor as it was and answers `None`.
/// Lengths are compared with the bytes that exist, never with what the packet declared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor over `rest`, whose first byte is byte `at` of the packet (counted from 0).
    pub(super) fn new(rest: &'a [u8], at: usize) -> Self {
        Self { rest, at }
    }

    /// The position in the packet of the next byte, counted from 0.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The bytes that are still to be read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything has been read.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        self.at = self.at.saturating_add(len);
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        self.at = self.at.saturating_add(N);
        Some(*taken)
    }

    /// One byte.
    pub(super) fn byte(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    /// A Two Byte Integer, most significant byte first.
    pub(super) fn two(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// A Four Byte Integer, most significant byte first.
    pub(super) fn four(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Bytes behind a Two Byte Integer that counts them: a UTF-8 Encoded String, whose characters
    /// are for the caller to judge, or Binary Data.
    pub(super) fn counted(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let len = ahead.two()?;
        let taken = ahead.take(usize::from(len))?;
        *self = ahead;
        Some(taken)
    }

    /// A Variable Byte Integer; `None` where the bytes end inside it.
    pub(super) fn varint(&mut self) -> Option<VarInt> {
        let read = VarInt::read(self.rest)?;
        self.take(read.len)?;
        Some(read)
    }
}

/// A Variable Byte Integer as it was found: seven bits a byte, least significant first, at most
/// four bytes (MQTT 3.1.1 §2.2.3, MQTT 5.0 §1.5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VarInt {
    /// 0 … 268,435,455.
    pub(super) value: u32,
    /// How many bytes it took, 1 … 4.
    pub(super) len: usize,
    /// The fourth byte says that a fifth follows. The value is that of the first four, which is
    /// how APISIX reads it.
    pub(super) unterminated: bool,
}

impl VarInt {
    /// Reads from the start of `bytes`; `None` while more bytes are needed.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut value = 0;
        let places = [(1, 0), (2, 7), (3, 14), (4, 21)];
        for (&byte, (len, shift)) in bytes.iter().zip(places) {
            value |= u32::from(byte & 0x7f) << shift;
            let more = byte & 0x80 != 0;
            if !more || len == 4 {
                return Some(Self {
                    value,
                    len,
                    unterminated: more,
                });
            }
        }
        None
    }

    /// Whether fewer bytes could not have said the same value [MQTT-1.5.5-1].
    pub(super) fn is_minimal(self) -> bool {
        let needed = match self.value {
            0..=0x7f => 1,
            0x80..=0x3fff => 2,
            0x4000..=0x1f_ffff => 3,
            _ => 4,
        };
        self.len == needed
    }

    /// Whether the standard allows it in MQTT 5.
    pub(super) fn is_sound(self) -> bool {
        !self.unterminated && self.is_minimal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(bytes: &[u8]) -> Option<(u32, usize, bool, bool)> {
        VarInt::read(bytes).map(|v| (v.value, v.len, v.unterminated, v.is_minimal()))
    }

    #[test]
    fn variable_byte_integers_at_every_boundary() {
        for (bytes, value) in [
            (&[0x00][..], 0),
            (&[0x7f], 127),
            (&[0x80, 0x01], 128),
            (&[0xff, 0x7f], 16_383),
            (&[0x80, 0x80, 0x01], 16_384),
            (&[0xff, 0xff, 0x7f], 2_097_151),
            (&[0x80, 0x80, 0x80, 0x01], 2_097_152),
            (&[0xff, 0xff, 0xff, 0x7f], 268_435_455),
        ] {
            assert_eq!(varint(bytes), Some((value, bytes.len(), false, true)));
            for end in 0..bytes.len() {
                assert_eq!(varint(&bytes[..end]), None);
            }
        }
    }

    #[test]
    fn variable_byte_integers_that_break_the_rules_are_told_apart() {
        assert_eq!(varint(&[0x8f, 0x00]), Some((15, 2, false, false)));
        assert_eq!(varint(&[0x80, 0x80, 0x00]), Some((0, 3, false, false)));
        let unterminated = varint(&[0xff, 0xff, 0xff, 0xff, 0x01]);
        assert_eq!(unterminated, Some((268_435_455, 4, true, true)));
    }

    #[test]
    fn counted_bytes_end_exactly_at_the_end() {
        let mut cursor = Cursor::new(&[0, 2, b'a', b'b'], 10);
        assert_eq!(cursor.counted(), Some(&b"ab"[..]));
        assert_eq!((cursor.at(), cursor.is_empty()), (14, true));
        let mut short = Cursor::new(&[0, 3, b'a', b'b'], 10);
        assert_eq!(short.counted(), None);
        assert_eq!(short.at(), 10, "a failed read leaves the cursor alone");
    }

    #[test]
    fn integers_are_big_endian() {
        let mut cursor = Cursor::new(&[1, 2, 3, 4, 5, 6, 7], 0);
        assert_eq!(cursor.byte(), Some(1));
        assert_eq!(cursor.two(), Some(0x0203));
        assert_eq!(cursor.four(), Some(0x0405_0607));
        assert_eq!(cursor.byte(), None);
    }
}
