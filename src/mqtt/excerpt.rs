//! Bytes of a client as they may be printed: escaped, and only so many.

use std::fmt;

/// The first bytes of something a client sent, kept by value so that an error outlives the buffer.
///
/// It displays as a quoted string in which everything but printable ASCII is escaped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Excerpt {
    bytes: [u8; Self::MAX],
    len: u8,
    more: bool,
}

impl Excerpt {
    /// How many bytes are kept at most.
    pub const MAX: usize = 24;

    /// Keeps the first [`Self::MAX`] of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut kept = [0; Self::MAX];
        let mut len = 0;
        for (slot, &byte) in kept.iter_mut().zip(bytes) {
            *slot = byte;
            len = u8::saturating_add(len, 1);
        }
        Self {
            bytes: kept,
            len,
            more: bytes.len() > Self::MAX,
        }
    }

    /// The bytes that were kept.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.len))
            .unwrap_or(&self.bytes)
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_quoted(f, self.as_bytes(), self.more)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What [`escaped`] returns.
#[derive(Clone, Copy)]
pub struct Escaped<'a>(&'a [u8]);

/// Prints bytes of a client (a client id, a user name) as a quoted string in which everything but
/// printable ASCII is escaped, cut after 128 bytes with `…`: neither a line feed nor 64 KiB of
/// client id reaches a log.
pub fn escaped(bytes: &[u8]) -> Escaped<'_> {
    Escaped(bytes)
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_at_checked(128) {
            Some((shown, rest)) => write_quoted(f, shown, !rest.is_empty()),
            None => write_quoted(f, self.0, false),
        }
    }
}

impl fmt::Debug for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn write_quoted(f: &mut fmt::Formatter<'_>, bytes: &[u8], more: bool) -> fmt::Result {
    let tail = if more { "…" } else { "" };
    write!(f, "\"{}{tail}\"", bytes.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_printable_ascii_is_escaped() {
        assert_eq!(
            escaped(b"a\n\x1b[2J\"\\\xff").to_string(),
            r#""a\n\x1b[2J\"\\\xff""#
        );
        assert_eq!(
            Excerpt::new(b"GET / HTTP/1.1\r\n").to_string(),
            r#""GET / HTTP/1.1\r\n""#
        );
    }

    #[test]
    fn what_is_printed_is_bounded() {
        assert_eq!(escaped(&[b'x'; 128]).to_string().chars().count(), 130);
        let long = escaped(&[b'x'; 70_000]).to_string();
        assert!(long.ends_with("x…\"") && long.chars().count() == 131);
        assert_eq!(Excerpt::new(&[b'x'; 24]).to_string().chars().count(), 26);
        assert!(Excerpt::new(&[b'x'; 25]).to_string().ends_with("…\""));
        assert_eq!(Excerpt::new(b"").to_string(), "\"\"");
    }
}
