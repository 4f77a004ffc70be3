//! The few MQTT 3.1.1 packets of the benches, and where one packet of a stream ends.

use std::sync::Arc;

/// Packet types as they stand in the high half of the first byte.
pub const CONNECT: u8 = 1;
pub const CONNACK: u8 = 2;
pub const PUBLISH: u8 = 3;
pub const PUBACK: u8 = 4;

/// CONNACK: accepted, no session.
pub const ACCEPTED: [u8; 4] = [0x20, 2, 0, 0];

const TOPIC: &[u8] = b"bench/t";
/// How much of a packet is kept for its reader: more than any CONNECT here, and of PUBLISH
/// whatever comes before the payload.
const KEPT: usize = 128;

/// CONNECT with a clean session and a keep alive of five minutes, which no row reaches.
pub fn connect(client_id: &str) -> Arc<[u8]> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 2];
    body.extend(300_u16.to_be_bytes());
    put_string(&mut body, client_id.as_bytes());
    packet(CONNECT << 4, &body)
}

/// PUBLISH of quality of service 1 with `payload` bytes of payload.
pub fn publish(packet_id: u16, payload: usize) -> Arc<[u8]> {
    let mut body = Vec::with_capacity(payload + 16);
    put_string(&mut body, TOPIC);
    body.extend(packet_id.to_be_bytes());
    body.resize(body.len() + payload, b'x');
    packet(PUBLISH << 4 | 2, &body)
}

/// PUBACK for a whole PUBLISH that [`publish`] made; `None` when it is another one.
pub fn puback(publish: &[u8]) -> Option<[u8; 4]> {
    let at = 2 + TOPIC.len();
    let id = publish.get(at..at + 2)?;
    Some(puback_of(u16::from_be_bytes([id[0], id[1]])))
}

/// PUBACK for the PUBLISH with this packet identifier.
pub fn puback_of(packet_id: u16) -> [u8; 4] {
    let [high, low] = packet_id.to_be_bytes();
    [PUBACK << 4, 2, high, low]
}

/// The client id in the body of CONNECT.
pub fn client_id(connect: &[u8]) -> Option<&[u8]> {
    let length = connect.get(10..12)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    connect.get(12..12 + length)
}

fn put_string(body: &mut Vec<u8>, string: &[u8]) {
    body.extend((string.len() as u16).to_be_bytes());
    body.extend(string);
}

fn packet(first: u8, body: &[u8]) -> Arc<[u8]> {
    let mut bytes = vec![first];
    let mut rest = body.len();
    loop {
        let low = (rest % 128) as u8;
        rest /= 128;
        bytes.push(if rest > 0 { low | 0x80 } else { low });
        if rest == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes.into()
}

/// Finds the packets in a stream of bytes and keeps no more than the start of the current one.
#[derive(Debug, Default)]
pub struct Framer {
    kept: Vec<u8>,
    /// Length of the fixed header and of the whole packet, once they are known.
    sizes: Option<(usize, usize)>,
    seen: usize,
}

/// The bytes are not MQTT.
#[derive(Debug)]
pub struct Malformed;

impl Framer {
    /// Takes the next bytes and calls `whole` with the type and the start of the body of every
    /// packet that they complete.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut whole: impl FnMut(u8, &[u8]),
    ) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            match self.sizes {
                None => {
                    self.kept.push(bytes[0]);
                    bytes = &bytes[1..];
                    self.look_at_header()?;
                }
                Some((_, total)) => {
                    let count = (total - self.seen).min(bytes.len());
                    let keep = KEPT.saturating_sub(self.kept.len()).min(count);
                    self.kept.extend(&bytes[..keep]);
                    self.seen += count;
                    bytes = &bytes[count..];
                }
            }
            self.finish(&mut whole);
        }
        Ok(())
    }

    /// Bytes of the current packet that are still to come and that nobody needs to see.
    pub fn rest_of_payload(&self) -> usize {
        match self.sizes {
            Some((_, total)) if self.kept.len() >= KEPT => total - self.seen,
            _ => 0,
        }
    }

    /// Takes `count` bytes that were thrown away, no more than [`Self::rest_of_payload`].
    pub fn skip(&mut self, count: usize, mut whole: impl FnMut(u8, &[u8])) {
        self.seen += count;
        self.finish(&mut whole);
    }

    fn look_at_header(&mut self) -> Result<(), Malformed> {
        let mut body = 0;
        for (place, byte) in self.kept.iter().skip(1).enumerate() {
            body |= usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                self.seen = self.kept.len();
                self.sizes = Some((self.seen, self.seen + body));
                return Ok(());
            }
        }
        if self.kept.len() > 4 {
            return Err(Malformed);
        }
        Ok(())
    }

    fn finish(&mut self, whole: &mut impl FnMut(u8, &[u8])) {
        if let Some((header, total)) = self.sizes
            && self.seen == total
        {
            whole(self.kept[0] >> 4, &self.kept[header..]);
            self.kept.clear();
            self.sizes = None;
        }
    }
}
